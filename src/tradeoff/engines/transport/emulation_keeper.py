"""The process that holds an emulated network: namespaces, devices and, for TUN, the packet relay.

Started by :class:`tradeoff.engines.transport.emulation.Lab` and spoken to in JSON lines over its standard
input and output. Its namespaces have no name and no file, so the kernel removes them and every device in
them when this process ends, however it ends; the end of its input makes it end. Whatever still runs
inside the namespaces is killed first.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def device_name(peer: int) -> str:
    """Name, inside a host's namespace, of the device that leads to host `peer`."""
    return f"to-{peer}"


def native_relay() -> Callable[[list[tuple[int, int, float, float]], int], None]:
    try:
        from tradeoff._native import relay_packets
    except ImportError as error:
        raise OSError(f"the native extension has no packet relay here ({error})") from error
    return relay_packets


class Keeper:
    """Network namespaces joined pairwise, each pair by one point-to-point link."""

    def __init__(self, addresses: list[str], delay: float, bytes_per_second: float, emulator: str) -> None:
        self.addresses = addresses
        self.delay = delay
        self.bytes_per_second = bytes_per_second
        self.emulator = emulator
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.namespaces = [self.new_namespace() for _ in addresses]
        self.relayed: list[tuple[int, int, float, float]] = []

    def new_namespace(self) -> int:
        check(libc.unshare(CLONE_NEWNET), "cannot create a network namespace")
        try:
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.ip("link set lo up")
            # No router solicitations: the counters hold what the programs sent, nothing else.
            with suppress(FileNotFoundError):
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            return namespace
        finally:
            check(libc.setns(self.home, CLONE_NEWNET), "cannot return to the first namespace")

    @contextmanager
    def inside(self, host: int) -> Iterator[None]:
        """Moves the calling thread, and the programs it starts, into a host's namespace."""
        check(libc.setns(self.namespaces[host], CLONE_NEWNET), f"cannot enter the namespace of host {host}")
        try:
            yield
        finally:
            check(libc.setns(self.home, CLONE_NEWNET), "cannot return to the first namespace")

    def ip(self, command: str) -> None:
        self.tool("ip", *command.split())

    def tool(self, *argv: str) -> None:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.stdout.strip()}")

    def build(self) -> None:
        if self.emulator == "tun":
            self.relay_packets = native_relay()
        for first in range(len(self.addresses)):
            for second in range(first + 1, len(self.addresses)):
                if self.emulator == "tun":
                    ends = self.tun(first, second), self.tun(second, first)
                    self.relayed.append((*ends, self.delay, self.bytes_per_second))
                else:
                    self.virtual_cable(first, second)
                self.configure(first, second)
                self.configure(second, first)

    def tun(self, host: int, peer: int) -> int:
        """A TUN device in `host`'s namespace; with segmentation offload one read moves up to 64 KiB."""
        with self.inside(host):
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", device_name(peer).encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
            fcntl.ioctl(descriptor, TUNSETIFF, request)
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
            return descriptor

    def virtual_cable(self, host: int, peer: int) -> None:
        with self.inside(host):
            there = f"/proc/{os.getpid()}/fd/{self.namespaces[peer]}"
            self.ip(
                f"link add name {device_name(peer)} type veth peer name {device_name(host)} netns {there}"
            )

    def configure(self, host: int, peer: int) -> None:
        device = device_name(peer)
        with self.inside(host):
            self.ip(f"addr add {self.addresses[host]} peer {self.addresses[peer]}/32 dev {device}")
            self.ip(f"link set {device} up")
            if self.emulator == "netem":
                shape = f"delay {self.delay * 1e6:.0f}us"
                if self.bytes_per_second:
                    shape += f" rate {self.bytes_per_second * 8:.0f}bit"
                # The default limit of 1000 packets would drop on a long fat link.
                self.tool("tc", *f"qdisc add dev {device} root netem limit 100000 {shape}".split())

    def counters(self, host: int, peer: int) -> dict[str, int]:
        with self.inside(host):
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        for line in lines:
            name, _, numbers = line.partition(":")
            if name.strip() == device_name(peer):
                fields = [int(number) for number in numbers.split()]
                return {
                    "received_bytes": fields[0],
                    "received_packets": fields[1],
                    "sent_bytes": fields[8],
                    "sent_packets": fields[9],
                }
        raise OSError(f"host {host} has no device {device_name(peer)}")

    def measure(self, host: int, peer: int, seconds: float) -> dict[str, float]:
        """Round trip (median of 20; seconds) and bandwidth (bits per second) that TCP gets."""
        with self.inside(peer):
            server = socket.create_server((self.addresses[peer], 0))
        with server:
            with self.inside(host):
                near = socket.create_connection(server.getsockname(), timeout=60)
            far, _ = server.accept()
        with near, far:
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return {"rtt": round_trip(near, far), "bandwidth": throughput(near, far, seconds)}

    def relay(self, stop: int) -> None:
        check(libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0), "cannot ask for precise timers")
        # The relay stands for a network: it must not queue behind the programs that it connects.
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        self.relay_packets(self.relayed, stop)

    def kill_inhabitants(self) -> None:
        """Ends every process that lives in one of the namespaces: all descend from commands of this lab."""
        ours = {(state.st_dev, state.st_ino) for state in map(os.fstat, self.namespaces)}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                state = os.stat(entry / "ns" / "net")
                if (state.st_dev, state.st_ino) in ours:
                    os.kill(int(entry.name), signal.SIGKILL)


def round_trip(near: socket.socket, far: socket.socket, trips: int = 20) -> float:
    def echo() -> None:
        for _ in range(trips):
            far.sendall(far.recv(1))

    echoing = threading.Thread(target=echo)
    echoing.start()
    times = []
    for _ in range(trips):
        start = time.perf_counter()
        near.sendall(b"x")
        near.recv(1)
        times.append(time.perf_counter() - start)
    echoing.join()
    return statistics.median(times)


def throughput(near: socket.socket, far: socket.socket, seconds: float) -> float:
    """Bits per second in the second half of a transfer: the first half opens TCP's window."""

    def flood() -> None:
        block = bytes(1 << 20)
        with suppress(OSError):
            while True:
                near.sendall(block)

    flooding = threading.Thread(target=flood)
    flooding.start()
    begin = time.perf_counter()
    counted, since, now = 0, begin, begin
    block = bytearray(1 << 20)
    while now < begin + seconds:
        size = far.recv_into(block)
        now = time.perf_counter()
        if now < begin + seconds / 2:
            since = now
        else:
            counted += size
    near.shutdown(socket.SHUT_RDWR)
    flooding.join()
    return counted * 8 / (now - since)


def answer(keeper: Keeper, request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "counters":
            return keeper.counters(request["host"], request["peer"])
        case "measure":
            return keeper.measure(request["host"], request["peer"], request["seconds"])
        case other:
            raise ValueError(f"unknown request {other!r}")


def main() -> None:
    # An interrupt at the terminal reaches the whole process group; the owner decides when the lab ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = json.loads(sys.stdin.readline())
    try:
        keeper = Keeper(**settings)
        keeper.build()
    except OSError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    stop, stopper = os.pipe()
    relay = threading.Thread(target=keeper.relay, args=(stop,)) if keeper.relayed else None
    if relay:
        relay.start()
    namespaces = [f"/proc/{os.getpid()}/fd/{namespace}" for namespace in keeper.namespaces]
    print(json.dumps({"namespaces": namespaces}), flush=True)
    try:
        for line in sys.stdin:
            print(json.dumps(answer(keeper, json.loads(line))), flush=True)
    except BrokenPipeError:
        pass
    finally:
        keeper.kill_inhabitants()
        os.close(stopper)
        if relay:
            relay.join()


if __name__ == "__main__":
    main()
