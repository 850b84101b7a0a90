"""What is sent arrives, once, in order, counted; memory stays within the queues."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import transport_programs as programs
from transport_helpers import Proxy, no_leaks, run_local

from tradeoff.engines.transport import (
    OFFLINE,
    LocalCluster,
    PeerAborted,
    PeerLost,
    PeerTimeout,
    SimNet,
    UnexpectedMessage,
    make_keys,
    read_transcript,
)
from tradeoff.engines.transport.config import TLS
from tradeoff.engines.transport.frames import FrameParser, FrameType

DTYPES = [np.uint8, np.uint32, np.uint64, np.int64, np.float32, np.float64]


def plan_messages(parties, count, seed):
    """A random schedule: (sender, receiver, tag, dtype, bytes), sizes log-uniform in 0..4 MiB."""
    generator = np.random.default_rng(seed)
    plan = []
    for _ in range(count):
        sender, receiver = generator.choice(parties, 2, replace=False)
        size = int(np.exp(generator.uniform(0, np.log(4 << 20)))) - 1
        plan.append(
            (int(sender), int(receiver), int(generator.integers(1 << 32)), generator.integers(7), size)
        )
    return plan


def make_message(index, dtype, size):
    """The content of message ``index``, made anew by its receiver to compare."""
    data = np.random.default_rng(index).bytes(size)
    if dtype == 6:
        return data
    kind = np.dtype(DTYPES[dtype])
    return np.frombuffer(data[: size // kind.itemsize * kind.itemsize], kind)


def fuzz_party(plan):
    def party(net):
        sent = threading.Thread(target=send_all, args=(net,))
        sent.start()
        for index, (sender, receiver, tag, dtype, size) in enumerate(plan):
            if receiver == net.me:
                value = make_message(index, dtype, size)
                got = net.recv(sender, tag=tag)
                assert type(got) is type(value)
                assert bytes(memoryview(got).cast("B") if len(got) else b"") == bytes(value)
        sent.join()

    def send_all(net):
        for index, (sender, receiver, tag, dtype, size) in enumerate(plan):
            if sender == net.me:
                net.send(receiver, make_message(index, dtype, size), tag=tag)

    return party


@pytest.mark.parametrize("parties", [2, 3, 4, 5])
def test_random_messages_arrive_equal_in_order_and_counted(parties):
    """500 random messages for each number of parties, 2,000 in all; counters against a proxy's count."""
    plan = plan_messages(parties, 500, seed=parties)
    with Proxy() as proxy:
        run = run_local(parties, fuzz_party(plan), through={0: proxy})
        assert not run.errors
    stats = run.stats
    for me in range(parties):
        for peer in set(range(parties)) - {me}:
            sent, received = stats[me].total(peer=peer), stats[peer].total(peer=me)
            expected = [step for step in plan if step[:2] == (me, peer)]
            assert sent.messages_sent == received.messages_received == len(expected)
            assert sent.payload_sent == received.payload_received
            assert sent.header_sent == received.header_received == (40 + 10) * len(expected)
            assert stats[me].wire_sent[peer] == stats[peer].wire_received[me]
    assert proxy.down == sum(stats[0].wire_sent.values())
    assert proxy.up == sum(stats[0].wire_received.values())


def test_wire_bytes_are_payload_plus_headers_plus_greeting():
    def party(net):
        net.barrier()
        before = net.stats()
        net.exchange(1 - net.me, np.zeros(1000, np.uint64))
        return before

    run = run_local(2, party)
    for me, before in run.results.items():
        during = run.stats[me] - before
        total = during.total()
        assert total.payload_sent + total.header_sent == 8000 + 40 + 10
        assert during.wire_sent[1 - me] == 8050 + 40  # and a BYE


def test_five_parties_exchange_64_mib_at_once_without_deadlock():
    size = 64 << 20
    queue = 16 << 20
    cluster = LocalCluster(5, programs.all_to_all, (size,), send_queue=queue, recv_queue=queue)
    for grown, firsts, uniform in cluster.run(120):
        assert firsts == [1, 2, 3, 4, 5]
        assert uniform
        assert grown < 4 * (queue + size)  # each of four peers: one message and a queue that it does not fit


@pytest.mark.parametrize("tls", [False, True])
def test_a_slow_consumer_stops_the_sender(tls):
    size, queue = 4 << 20, 16 << 20
    cluster = LocalCluster(2, programs.flood, (40, size), tls=tls, send_queue=queue, recv_queue=queue)
    sender, receiver = cluster.run(60)
    slack = 4 << 20  # the interpreter's own and the array that is made next
    assert sender < queue + size + slack
    assert receiver < queue + 2 * size + slack


def flood(net):
    for _ in range(100):
        net.send(1, np.zeros(1 << 20, np.uint8))


def test_a_full_queue_times_out_the_sender():
    def party(net):
        if net.me == 1:
            net.recv(0, tag=9, offline=True, timeout=1.0)
            return
        with net.scope("flooding"), pytest.raises(PeerTimeout) as caught:
            flood(net)
        assert (caught.value.peer, caught.value.scope) == (1, "flooding")
        raise caught.value

    run = run_local(2, party, send_queue=1 << 20, recv_queue=1 << 20, send_timeout=0.5, close_timeout=0.2)
    assert isinstance(run.errors[0], PeerTimeout)


def test_both_may_send_first_whatever_the_size():
    value = np.arange(6 << 20, dtype=np.uint64)

    def party(net):
        return np.array_equal(net.exchange(1 - net.me, value, expect=(np.uint64, value.shape)), value)

    assert run_local(2, party, send_queue=1 << 20, recv_queue=1 << 20).results == {0: True, 1: True}


def collectives(net):
    own = np.full(3, net.me, np.uint32)
    gathered = net.gather(own, root=1, tag=5)
    assert (gathered is None) == (net.me != 1)
    if gathered:
        assert [int(part[0]) for part in gathered] == [0, 1, 2]
    assert int(net.broadcast(own if net.me == 2 else None, root=2)[0]) == 2
    parts = net.allgather(own, expect=(np.uint32, (3,)))
    net.barrier()
    return [int(part.sum()) for part in parts]


def test_collectives_agree_over_sockets_and_simulated():
    expected = [0, 3, 6]
    assert run_local(3, collectives).results == {0: expected, 1: expected, 2: expected}
    assert SimNet(3).run(collectives) == [expected] * 3


def unexpected(net):
    if net.me == 1:
        for value in (b"tag", np.zeros(2, np.uint8), np.zeros(2, np.uint8), b"bytes", b"fine"):
            net.send(0, value, tag=1)
        return net.recv(0)
    with (
        net.scope("layer3"),
        pytest.raises(UnexpectedMessage, match=r"tag 2 .* in layer3, got tag 1"),
    ):
        net.recv(1, tag=2)
    with pytest.raises(UnexpectedMessage, match=r"expected uint64\[2\] .*, got uint8\[2\]"):
        net.recv(1, tag=1, expect=(np.uint64, (2,)))
    with pytest.raises(UnexpectedMessage, match=r"expected uint8\[3\] .*, got uint8\[2\]"):
        net.recv(1, tag=1, expect=(np.uint8, (3,)))
    with pytest.raises(UnexpectedMessage, match=r"expected uint8 .*, got bytes\[5\]"):
        net.recv(1, tag=1, expect=(np.uint8, None))
    assert net.recv(1, tag=1, expect=(bytes, None)) == b"fine"
    net.send(1, b"done")
    return None


def test_wrong_tag_dtype_or_shape_is_named():
    assert run_local(2, unexpected).errors == {}
    SimNet(2).run(unexpected)


def test_coalesced_messages_arrive_in_order_and_a_receive_inside_does_not_wait_for_itself():
    def party(net):
        peer = 1 - net.me
        with net.coalesce():
            for i in range(300):
                net.send(peer, np.full(i, 1, np.uint8), tag=i)
            first = net.recv(peer, tag=0)
            net.send(peer, b"last", tag=300)
        rest = [net.recv(peer, tag=i) for i in range(1, 301)]
        return first.size, [len(value) for value in rest[:-1]], rest[-1]

    expected = (0, list(range(1, 300)), b"last")
    assert run_local(2, party).results == {0: expected, 1: expected}
    assert SimNet(2).run(party) == [expected, expected]


def offline_beside_online(net):
    peer = 1 - net.me
    for i in range(20):
        net.send(peer, np.full(4, i, np.uint64), tag=i, offline=True)
    net.send(peer, b"online", tag=77)
    assert net.recv(peer, tag=77) == b"online"
    for i in range(20):
        assert int(net.recv(peer, tag=i, offline=True)[0]) == i
    stats = net.stats()
    return stats.total(phase=OFFLINE).payload_sent, stats.total(phase="online").payload_sent


def test_phases_are_received_and_counted_apart():
    assert run_local(2, offline_beside_online).results == {0: (640, 6), 1: (640, 6)}
    assert SimNet(2).run(offline_beside_online) == [(640, 6), (640, 6)]


def first_two(net):
    if net.me == 2:  # late: it sends when the others have what they wait for
        for peer in net.peers:
            net.recv(peer, tag=9, offline=True)
    got = net.first(2, np.array([net.me], np.uint64), tag=4)
    assert next(iter(got)) == net.me
    if net.me != 2:
        assert set(got) == {0, 1}
        net.send(2, b"go", tag=9, offline=True)
    last = net.allgather(np.array([10 + net.me], np.uint64), tag=5)
    return [int(part[0]) for part in last]


def test_first_takes_who_comes_first_and_discards_the_late():
    assert SimNet(3).run(first_two) == [[10, 11, 12]] * 3
    assert run_local(3, first_two).results == {me: [10, 11, 12] for me in range(3)}


def go_on_without_second(net):
    if net.me == 1:
        for peer in net.peers:
            net.recv(peer, offline=True)  # nobody is still on the way to this point
        raise RuntimeError("gone")
    net.send(1, b"here", offline=True)
    with pytest.raises(PeerAborted, match="RuntimeError"):
        net.recv(1)
    got = net.first(3, np.array([net.me], np.uint64))
    net.drop(1)
    parts = net.allgather(np.array([net.me], np.uint64), tag=3)
    assert net.peers == tuple(p for p in (0, 2, 3) if p != net.me)
    return sorted(got), [None if part is None else int(part[0]) for part in parts]


def test_robust_protocols_go_on_without_a_peer():
    run = run_local(4, go_on_without_second)
    assert set(run.errors) == {1}
    assert set(map(str, run.results.values())) == {str(([0, 2, 3], [0, None, 2, 3]))}


def test_threads_may_share_a_party():
    def party(net):
        done = []

        def talk(offline):
            for i in range(200):
                got = net.exchange(1 - net.me, np.full(i % 50, i, np.uint64), tag=i, offline=offline)
                assert got.size == i % 50
            done.append(offline)

        threads = [threading.Thread(target=talk, args=(offline,)) for offline in (False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(done), net.stats().rounds("online"), net.stats().rounds("offline")

    expected = ([False, True], 200, 200)
    assert run_local(2, party).results == {0: expected, 1: expected}


@pytest.mark.filterwarnings("ignore::tradeoff.engines.transport.InsecureWarning")
@pytest.mark.parametrize("secure", [False, True])
def test_transcript_is_every_frame_and_needs_consent(tmp_path, secure):
    from dataclasses import replace

    from transport_helpers import make_config

    from tradeoff.engines.transport import InsecureTransport, Party
    from tradeoff.engines.transport.party import listen

    if secure:
        make_keys(tmp_path, 2)
    config = make_config(["127.0.0.1:1", "127.0.0.1:2"], tls=TLS.folder(tmp_path) if secure else None)
    with pytest.raises(InsecureTransport, match="synthetic_inputs"):
        Party(config, 0, record=tmp_path / "t")
    listeners = [listen("127.0.0.1:0"), None]
    config = replace(config, parties=(f"127.0.0.1:{listeners[0].getsockname()[1]}", None))
    values = [np.arange(100000, dtype=np.uint64), b"x" * 10]

    def party(me):
        path = tmp_path / f"transcript{me}"
        with Party(config, me, listener=listeners[me], record=path, synthetic_inputs=True) as net:
            for value in values:
                net.exchange(1 - me, value)

    threads = [threading.Thread(target=party, args=(me,)) for me in range(2)]
    with no_leaks():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listeners[0].close()
    for me in range(2):
        entries = list(read_transcript(tmp_path / f"transcript{me}"))
        for sent in (True, False):
            parser = FrameParser()
            parser.next_sequence = 1  # the greeting is before
            frames = [f for entry in entries if entry.sent == sent for f in parser.feed(entry.frame)]
            data = [frame.value for frame in frames if frame.type is FrameType.DATA]
            assert np.array_equal(data[0], values[0])
            assert data[1] == values[1]


def test_wrong_arguments_are_refused():
    def party(net):
        for call in (
            lambda: net.send(net.me, b""),
            lambda: net.send(2, b""),
            lambda: net.send(1 - net.me, b"", tag=1 << 32),
            lambda: net.recv(-1),
            lambda: net.broadcast(None, root=net.me),
            lambda: net.first(3, b""),
        ):
            with pytest.raises(ValueError, match=r"peer|tag|root|between"):
                call()
        net.barrier()
        net.close()
        with pytest.raises(PeerLost, match="left the session"):
            net.send(1 - net.me, b"")

    SimNet(2).run(party)
    assert not run_local(2, party).errors
