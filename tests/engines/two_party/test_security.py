"""What the parties and the dealer see: uniform, fresh, and nothing else."""

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tradeoff.engines import two_party
from tradeoff.engines.transport import SimNet, prg
from tradeoff.engines.two_party import correlations, offline
from tradeoff.engines.two_party.activations import Coefficients, Quadratic, quadratic
from tradeoff.engines.two_party.arithmetic import (
    Elementwise,
    MatrixProduct,
    Square,
    StaticTriple,
    Triple,
    product,
    square,
    static_product,
)
from tradeoff.engines.two_party.comparison import Comparison, relu
from tradeoff.engines.two_party.correlations import Fields
from tradeoff.engines.two_party.offline import Generator, Source
from tradeoff.engines.two_party.ot import ObliviousSource
from tradeoff.engines.two_party.party import Evaluator, StaticOperand
from tradeoff.engines.two_party.protocol import Lane, Rounds
from tradeoff.engines.two_party.sharing import Ring
from tradeoff.engines.two_party.truncation import Truncation, truncate
from tradeoff.nn import plan as op

Frames = list[tuple[int, int, bytes]]
"""(sender, receiver, payload)"""


def program(relus: int = 256) -> two_party.Program:
    """A private convolution, a mixed activation, a pooling (several levels), a linear layer."""
    generator = np.random.default_rng(0)
    side = int((relus // 4) ** 0.5)
    shape = (4, side, side)
    mask = generator.random(shape) < 0.8
    operators = (
        op.Input("input", (), (1, side, side)),
        op.Convolution(
            "conv", ("input",), shape, generator.normal(size=(4, 1, 3, 3)), None, (1, 1), (1, 1), (1, 1), 1
        ),
        op.MaskedReLU("mixed", ("conv",), shape, mask, 0.2 * np.ones((3, 4))),
        op.MaxPool("pool", ("mixed",), (4, side // 2, side // 2), (2, 2), (2, 2), (0, 0), (1, 1)),
        op.Flatten("flat", ("pool",), (side * side,)),
        op.Linear("head", ("flat",), (3,), generator.normal(size=(3, side * side)) / side, None),
    )
    return two_party.compile(op.Plan(operators, (1, side, side), "head"))


class Tap:
    """Records every payload that crosses a simulated net."""

    def __init__(self) -> None:
        self.frames: Frames = []

    def __call__(self, net: SimNet) -> None:
        for endpoint in net.endpoints:
            self._wrap(endpoint)

    def _wrap(self, endpoint: Any) -> None:
        original = endpoint.send

        def send(to: int, value: Any, **keywords: Any) -> None:
            payload = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
            self.frames.append((endpoint.me, to, payload))
            original(to, value, **keywords)

        endpoint.send = send

    def seen(self, *receivers: int, sender: int | None = None) -> list[bytes]:
        return [data for source, to, data in self.frames if to in receivers and sender in (None, source)]


def uniform_bytes(data: bytes) -> float:
    """p-value of a chi-square test that all byte values are equally likely."""
    return float(stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue)


def test_received_frames_are_uniform_whatever_the_input() -> None:
    """At least 10^6 bytes for each of two very different inputs."""
    compiled = program(relus=4096)
    batch = 8
    side = compiled.plan.input_shape[1]
    counts = []
    for x in (
        np.zeros((batch, 1, side, side)),
        100 + np.random.default_rng(0).normal(size=(batch, 1, side, side)),
    ):
        tap = Tap()
        with two_party.Session.simulated(watch=tap) as session:
            session.infer(compiled, x, reveal_to="server")
        # the last message of party 1 is its share of the result, which is uniform, too
        for receiver in (0, 1):
            data = b"".join(tap.seen(receiver, sender=1 - receiver))
            assert len(data) > 5e5
            assert uniform_bytes(data) > 1e-4
            counts.append(np.bincount(np.frombuffer(data, np.uint8), minlength=256))
    for receiver in (0, 1):
        assert stats.chi2_contingency([counts[receiver], counts[2 + receiver]]).pvalue > 1e-4


def test_shares_of_a_constant_are_uniform(share: Callable[..., Any]) -> None:
    for part in share(Ring(), np.full(130_000, 7, np.uint64)):
        assert uniform_bytes(part.tobytes()) > 1e-4


def test_a_mask_reused_would_be_seen() -> None:
    """The chi-square test does fail on openings without masks."""
    assert uniform_bytes(np.arange(130_000, dtype=np.uint64).tobytes()) < 1e-4


RINGS = (Ring(64, 16), Ring(32, 8))
Opening = tuple[Lane, Callable[[int, Any, list[Fields]], Rounds], dict[str, Any]]


def opening_protocols(ring: Ring, count: int) -> dict[str, Opening]:
    """Every way to open something: its material, and the protocol on a flat share."""
    f, shape = ring.frac_bits, (count // 64, 64)
    weight = prg.Prg(bytes(16)).stream(bytes(16), None, 0, 0, "static").words((3, 64), ring.dtype)
    static = {"weight": weight, "linear": weight[0], "quadratic": weight[1]}
    operand = StaticOperand(weight, weight)
    coefficients = Coefficients(None, weight[0], weight[1], weight[0], weight[1])
    cases: dict[str, Opening] = {
        "square": ((Square(ring, count),), lambda rank, x, m: square(rank, x, m[0]), {}),
        "product": (
            (Triple(ring, Elementwise(), (count,), (count,)),),
            lambda rank, x, m: product(rank, Elementwise(), x, x, m[0]),
            {},
        ),
        "static product": (
            (StaticTriple(ring, MatrixProduct(), shape, (3, 64), ring.bits),),
            lambda rank, x, m: static_product(rank, MatrixProduct(), x.reshape(shape), operand, m[0]),
            static,
        ),
        "truncation": (
            (Truncation(ring, count, f),),
            lambda rank, x, m: truncate(rank, ring, f, x, m[0]),
            {},
        ),
    }
    for shift, how in ((0, "plain"), (f, "truncated")):
        lane = (Quadratic(ring, shape, shift, True, ring.bits),)
        cases[f"quadratic {how}"] = (
            lane,
            lambda rank, x, m, kind=lane[0]: quadratic(rank, kind, coefficients, x.reshape(shape), m[0]),
            static,
        )
        for radix in (2, 4):
            kind = Comparison(ring, count, radix, shift)
            cases[f"relu {radix} {how}"] = (
                (kind,),
                lambda rank, x, m, kind=kind: relu(rank, kind, x, m[0]),
                {},
            )
    return cases


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("name", opening_protocols(RINGS[0], 64))
def test_opened_values_are_uniform(name: str, ring: Ring, two_parties: Any) -> None:
    """What is opened: a share is uniform in any case, so frames alone cannot show it.

    Party 0's share is zero, so what party 1 sends, and what both learn in a round, is hidden by nothing but
    the material. The bound is far below any p-value of thousands of runs; an absent mask gives about 0.
    """
    count = 1 << 16
    lane, protocol, static = opening_protocols(ring, count)[name]
    for value in (0, 5 << ring.frac_bits, -3):
        x = np.full(count, value % (1 << ring.bits), ring.dtype)
        shares = np.zeros_like(x), x
        run = two_parties(lane, lambda rank, m, shares=shares: protocol(rank, shares[rank], m), static)
        for number, (zero, one) in enumerate(run.messages):
            packed = isinstance(lane[0], Comparison) and number > 0
            opened = zero ^ one if packed else zero + one
            assert uniform_bytes(opened.tobytes()) > 1e-9, f"round {number}"
            assert uniform_bytes(one.tobytes()) > 1e-9, f"message of round {number}"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("a", "static product"),
        ("a", "square"),
        ("b", "product"),
        ("r", "truncation"),
        ("r", "relu 4 truncated"),
        ("masks0", "relu 2 plain"),
        ("masks2", "relu 4 truncated"),
        ("coin", "relu 4 plain"),
        ("r", "quadratic truncated"),
    ],
)
def test_an_absent_mask_is_noticed(
    field: str, name: str, two_parties: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above does fail where one mask is zero, although every result stays right."""
    original = correlations._draw

    def without(fields: Any, stream: Any, ring: Ring) -> dict[str, Any]:
        drawn = original(fields, stream, ring)
        if field in drawn:
            drawn[field][...] = 0
        return drawn

    monkeypatch.setattr(correlations, "_draw", without)
    with pytest.raises(AssertionError, match="round"):
        test_opened_values_are_uniform(name, RINGS[0], two_parties)


def openings(frames: Frames) -> list[bytes]:
    """Messages between the computing parties of at least 64 bytes."""
    return [data for source, to, data in frames if {source, to} == {0, 1} and len(data) >= 64]


@pytest.mark.parametrize("offline", ["dealer", "ot"])
def test_nothing_is_opened_twice(offline: Any) -> None:
    """The same input, twice in one session and in two, gives no equal message."""
    compiled = program(relus=256 if offline == "dealer" else 64)
    x = np.ones((2, *compiled.plan.input_shape))
    messages = []
    for _ in range(2):
        tap = Tap()
        with two_party.Session.simulated(offline, watch=tap) as session:
            session.infer(compiled, x)
            session.infer(compiled, x)
        messages += openings(tap.frames)
    assert len(set(messages)) == len(messages) > 40


def infer_with(
    sources: Callable[[int], Source], compiled: two_party.Program, x: NDArray[Any], times: int
) -> None:
    """Run both parties of a simulated net with given sources, ``times`` inferences in one session."""

    def party(net: Any) -> None:
        view = compiled if net.me == 0 else compiled.public()
        evaluator = Evaluator(net, view, len(x), sources(net.me), ledger=prg.BlockLedger())
        evaluator.prepare()
        for _ in range(times):
            evaluator.infer(x if net.me == 1 else None)

    SimNet(2).run(party)


def sources_with(
    compiled: two_party.Program, batch: int, ledgers: tuple[Any, Any], session: bytes
) -> Callable[[int], Source]:
    """Sources whose every pseudorandom block is recorded."""
    seeds = secrets.token_bytes(16), secrets.token_bytes(16)
    feed = offline.OwnFeed(Generator(compiled.public(), batch, seeds, session))
    return lambda rank: Source(rank, seeds[rank], session, feed if rank else None, ledger=ledgers[rank])


def test_no_block_is_used_twice() -> None:
    """Three inferences in one session, every block of both parties' generators recorded."""
    compiled = program()
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((2, *compiled.plan.input_shape))
    infer_with(sources_with(compiled, 2, ledgers, bytes(16)), compiled, x, times=3)
    assert all(ledger.blocks > 1000 for ledger in ledgers)


def test_without_a_dealer_no_block_is_used_twice() -> None:
    """The same where the parties make the material: their own draws and the columns of all transfers."""
    compiled = program(relus=64)
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((1, *compiled.plan.input_shape))

    def party(net: Any) -> None:
        view = compiled if net.me == 0 else compiled.public()
        evaluator = Evaluator(net, view, 1, ObliviousSource(net, view, ledgers[net.me]))
        evaluator.prepare()
        for _ in range(3):
            evaluator.infer(x if net.me == 1 else None)

    SimNet(2).run(party)
    assert all(ledger.blocks > 1000 for ledger in ledgers)


def test_messages_of_transfers_are_uniform_whatever_the_input() -> None:
    """Requests, payloads and openings in either direction, for two very different inputs."""
    compiled = program(relus=256)
    side = compiled.plan.input_shape[1]
    for x in (np.zeros((1, 1, side, side)), np.full((1, 1, side, side), 100.0)):
        tap = Tap()
        with two_party.Session.simulated("ot", watch=tap) as session:
            session.infer(compiled, x, reveal_to="server")
        for receiver in (0, 1):
            # all but the points of the base transfers, whose highest bits are not uniform
            messages = [data for data in tap.seen(receiver) if len(data) not in (48, 32 * 128, 32 * 384)]
            assert len(b"".join(messages)) > 3e5
            assert uniform_bytes(b"".join(messages)) > 1e-6


def test_dropping_the_inference_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above does fail if streams are named without the inference."""
    original = prg.Prg.derive

    def without_inference(self: prg.Prg, session: bytes, inference: int | None, *name: Any) -> bytes:
        return original(self, session, None if inference is None else 0, *name)

    monkeypatch.setattr(prg.Prg, "derive", without_inference)
    compiled = program()
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((2, *compiled.plan.input_shape))
    with pytest.raises(prg.BlockReuse):
        infer_with(sources_with(compiled, 2, ledgers, bytes(16)), compiled, x, times=2)


def test_dropping_the_chunk_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does if the parts of one operator share a stream."""
    original = prg.Prg.derive

    def without_chunk(self: prg.Prg, *name: Any) -> bytes:
        return original(self, *name[:3], 0, name[4])

    monkeypatch.setattr(prg.Prg, "derive", without_chunk)
    compiled = program()
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((2, *compiled.plan.input_shape))
    with pytest.raises(prg.BlockReuse):
        infer_with(sources_with(compiled, 2, ledgers, bytes(16)), compiled, x, times=1)


def test_material_is_handed_out_once() -> None:
    """A source has no way to ask for the same correlation again."""
    compiled = program()
    (group,) = compiled.steps[1].groups(1)
    source = sources_with(compiled, 1, (None, None), bytes(16))(0)
    source.begin()
    first, second = (source.take(1, group[0][0]) for _ in range(2))
    assert (first["c"] != second["c"]).any()


def test_dealer_hears_nothing_but_flow_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the batch size, only empty messages, also when flow control is at work."""
    monkeypatch.setattr(offline, "CREDIT", 1 << 12)
    monkeypatch.setattr(offline, "WINDOW", 4 << 12)
    compiled = program()
    tap = Tap()
    with two_party.Session.simulated(watch=tap) as session:
        for _ in range(2):
            session.infer(compiled, np.ones((2, *compiled.plan.input_shape)))
    heard = tap.seen(2)
    assert [len(data) for data in heard[:1]] == [8]
    assert len(heard) > 6
    assert not any(heard[1:])


@pytest.mark.parametrize(
    "message", [np.ones(3, np.uint8), np.array(1, np.uint64), b"x"], ids=["array", "scalar", "bytes"]
)
def test_dealer_refuses_to_hear_more(message: Any) -> None:
    compiled = program()

    def party(net: Any) -> None:
        if net.me == 2:
            offline.run_dealer(net, compiled.public())
        elif net.me == 1:
            net.send(2, np.array([1], "<u8"), tag=offline.BATCH, offline=True)
            net.send(2, message, tag=offline.GO, offline=True)
        if net.me != 2:
            net.recv(2)

    with pytest.raises(ValueError, match="more than flow control"):
        SimNet(3).run(party)


def test_client_gets_only_the_result() -> None:
    """With ``argmax`` the last message to party 1 is one share of a label an image, and party 0 gets none."""
    compiled = program()
    tap = Tap()
    x = np.ones((2, *compiled.plan.input_shape))
    with two_party.Session.simulated(watch=tap) as session:
        labels = session.infer(compiled, x, output="argmax")
    last = tap.seen(1, sender=0)[-1]
    assert len(last) == 2 * 8
    assert labels.shape == (2,)
    assert not [data for data in tap.seen(0, sender=1)[-1:] if len(data) == 16]
