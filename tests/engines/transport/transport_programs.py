"""Programs that parties run in the tests; in a module of their own, so that child processes import little."""

from __future__ import annotations

import os
import resource
import time

import numpy as np


def swap(net, size=4):
    """Exchange with every peer; the first element of what each sent."""
    own = np.full(size, net.me, np.uint64)
    return [int(part[0]) for part in net.allgather(own)]


def swap_and_list_modules(net):
    """:func:`swap`, and which heavy modules the process has imported."""
    import sys

    return swap(net), [name for name in ("torch", "pydantic", "scipy") if name in sys.modules]


def peak_bytes():
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def all_to_all(net, size):
    """A large message to everybody at once; how much the process grew, and what came."""
    own = np.full(size // 8, net.me + 1, np.uint64)
    net.barrier()
    before = peak_bytes()
    parts = net.allgather(own)
    grown = peak_bytes() - before
    firsts = [int(part[0]) for part in parts]
    return grown, firsts, all(int(part.min()) == int(part.max()) for part in parts)


def flood(net, count, size):
    """Party 0 sends faster than party 1 takes; how much the sender grew until all was taken."""
    net.barrier()
    before = peak_bytes()
    if net.me == 0:
        for i in range(count):
            net.send(1, np.full(size // 8, i, np.uint64), tag=i)
        net.flush()
    else:
        for i in range(count):
            time.sleep(0.02)
            assert int(net.recv(0, tag=i)[-1]) == i
    return peak_bytes() - before


def wait_for_second(net, path):
    """Everybody waits for a message of party 1, which never sends one; says first that it is there."""
    net.barrier()
    with open(f"{path}.{net.me}", "w") as file:
        file.write(str(os.getpid()))
    if net.me == 1:
        time.sleep(600)
    with net.scope("waiting"):
        return net.recv(1)


def chain(net, path):
    """Party 0 waits for party 2, which waits for party 1, which never sends."""
    net.barrier()
    with open(f"{path}.{net.me}", "w") as file:
        file.write(str(os.getpid()))
    if net.me == 1:
        time.sleep(600)
    return net.recv(2 if net.me == 0 else 1)


def fail_second(net):
    """Party 1 has a bug; the others wait for it."""
    if net.me == 1:
        raise ZeroDivisionError("a secret number")
    net.recv(1)


def fail_strangely(net):
    """Party 1 raises an error that cannot be pickled."""

    class Local(Exception):
        pass

    if net.me == 1:
        raise Local("odd")
    net.recv(1)


def vanish(net):
    """Party 0 ends its process without a word."""
    if net.me == 0:
        os._exit(7)
    net.recv(0)


def never_end(net):
    """Runs for ever."""
    time.sleep(600)
