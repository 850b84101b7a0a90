"""What the parties and the dealer see: uniform, fresh, and nothing else (acceptance 5 and 6)."""

import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tradeoff.engines import two_party
from tradeoff.engines.transport import SimNet
from tradeoff.engines.two_party import offline, prg
from tradeoff.engines.two_party.offline import Generator, Source
from tradeoff.engines.two_party.party import Evaluator
from tradeoff.engines.two_party.sharing import Ring
from tradeoff.nn import plan as op

Frames = list[tuple[int, int, bytes]]
"""(sender, receiver, payload)"""


def program(relus: int = 256) -> two_party.Program:
    """One private convolution, a mixed activation, a linear layer: every kind of opening."""
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
        op.Flatten("flat", ("mixed",), (4 * side * side,)),
        op.Linear("head", ("flat",), (3,), generator.normal(size=(3, 4 * side * side)) / side, None),
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
    """Acceptance 5: at least 10^6 bytes for each of two very different inputs."""
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
    """Acceptance 5."""
    for part in share(Ring(), np.full(130_000, 7, np.uint64)):
        assert uniform_bytes(part.tobytes()) > 1e-4


def test_a_mask_reused_would_be_seen() -> None:
    """The chi-square test does fail on openings without masks."""
    assert uniform_bytes(np.arange(130_000, dtype=np.uint64).tobytes()) < 1e-4


def openings(frames: Frames) -> list[bytes]:
    """Messages between the computing parties of at least 64 bytes."""
    return [data for source, to, data in frames if {source, to} == {0, 1} and len(data) >= 64]


def test_nothing_is_opened_twice() -> None:
    """Acceptance 6: the same input, twice in one session and in two, gives no equal message."""
    compiled = program()
    x = np.ones((2, *compiled.plan.input_shape))
    messages = []
    for _ in range(2):
        tap = Tap()
        with two_party.Session.simulated(watch=tap) as session:
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
        evaluator = Evaluator(net, view, len(x), sources(net.me))
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
    """Acceptance 6: three inferences in one session, every block of both parties' generators recorded."""
    compiled = program()
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((2, *compiled.plan.input_shape))
    infer_with(sources_with(compiled, 2, ledgers, bytes(16)), compiled, x, times=3)
    assert all(ledger.blocks > 1000 for ledger in ledgers)


def test_dropping_the_inference_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 6: the check above does fail if streams are named without the inference."""
    original = prg.Prg.derive

    def without_inference(self: prg.Prg, session: bytes, inference: int | None, *name: Any) -> bytes:
        return original(self, session, None if inference is None else 0, *name)

    monkeypatch.setattr(prg.Prg, "derive", without_inference)
    compiled = program()
    ledgers = prg.BlockLedger(), prg.BlockLedger()
    x = np.ones((2, *compiled.plan.input_shape))
    with pytest.raises(prg.BlockReuse):
        infer_with(sources_with(compiled, 2, ledgers, bytes(16)), compiled, x, times=2)


def test_material_is_handed_out_once() -> None:
    """A source has no way to ask for the same correlation again."""
    compiled = program()
    (group,) = compiled.steps[1].groups(1)
    source = sources_with(compiled, 1, (None, None), bytes(16))(0)
    source.begin()
    first, second = (source.take(1, group[0][0]) for _ in range(2))
    assert (first["c"] != second["c"]).any()


def test_dealer_hears_nothing_but_flow_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acceptance 6: after the batch size, only empty messages, also when flow control is at work."""
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


def test_dealer_refuses_to_hear_more() -> None:
    compiled = program()

    def party(net: Any) -> None:
        if net.me == 2:
            offline.run_dealer(net, compiled.public())
        elif net.me == 1:
            net.send(2, np.array([1], "<u8"), tag=offline.BATCH, offline=True)
            net.send(2, np.ones(3, np.uint8), tag=offline.GO, offline=True)
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
