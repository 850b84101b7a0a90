"""A peer that breaks the protocol, ports that are taken, tensors in many chunks, and what an import costs."""

import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tradeoff.core.errors import EngineError, ProtocolError
from tradeoff.engines import two_party
from tradeoff.engines.transport import Config, PortInUse, SimNet, UnexpectedMessage
from tradeoff.engines.two_party import protocol, steps
from tradeoff.engines.two_party.arithmetic import Square
from tradeoff.engines.two_party.hosts import serve_queries
from tradeoff.engines.two_party.ot import ObliviousSource
from tradeoff.engines.two_party.sharing import Ring
from tradeoff.nn import plan as op


def relu_plan(count: int) -> op.Plan:
    operators = (op.Input("input", (), (count,)), op.ReLU("first.relu", ("input",), (count,)))
    return op.Plan(operators, (count,), "first.relu")


@pytest.mark.parametrize(
    "change",
    [
        lambda value, tag: (value[:-1], tag),
        lambda value, tag: (value.astype(np.uint32), tag),
        lambda value, tag: (value, tag + 1),
    ],
    ids=["shape", "dtype", "operator"],
)
@pytest.mark.parametrize("phase", ["dealer", "ot"])
def test_wrong_message_names_the_operator(change: Any, phase: Any) -> None:
    """A message of a wrong shape or type, or of another operator, is refused with the operator's name."""

    def watch(net: SimNet) -> None:
        endpoint = net.endpoints[0]
        original = endpoint.send

        def send(to: int, value: Any, *, tag: int = 0, offline: bool = False) -> None:
            if endpoint.current_scope == "first.relu" and not isinstance(value, bytes):
                value, tag = change(value, tag)
            original(to, value, tag=tag, offline=offline)

        endpoint.send = send  # type: ignore[method-assign]

    program = two_party.compile(relu_plan(64))
    session = two_party.Session.simulated(phase, watch=watch, recv_timeout=10.0)
    with session, pytest.raises(UnexpectedMessage, match=r"first\.relu"):
        session.infer(program, np.ones((1, 64)))


def test_transfers_of_another_session_are_refused() -> None:
    """Before anything is transferred: pads of another session would only garble everything."""
    program = two_party.compile(relu_plan(64))

    def party(net: Any) -> None:
        net.session += net.me
        ObliviousSource(net, program).prepare()

    with pytest.raises(ProtocolError, match="another session"):
        SimNet(2).run(party)


def test_message_that_was_not_declared_is_an_error() -> None:
    """Costs are predicted from what correlations declare, so a protocol may not send anything else."""

    class Channel:
        rank = 0

        def send(self, message: Any) -> None:
            raise AssertionError("it was sent")

        def receive(self, like: Any) -> Any:
            return like

    def wordy() -> Any:
        yield np.zeros(11, np.uint64)

    with pytest.raises(EngineError, match="declares"):
        protocol.lockstep(Channel(), ((Square(Ring(), 10),),), [wordy()])


def test_port_in_use_is_named() -> None:
    program = two_party.compile(relu_plan(4))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config((f"127.0.0.1:{port}", "127.0.0.1:1", "127.0.0.1:2"), insecure=True)
        with pytest.warns(UserWarning, match="neither encrypted"), pytest.raises(PortInUse, match=str(port)):
            serve_queries(program, config)


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_many_chunks_give_the_same(kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of chunks in flight: same results, rounds as predicted, no mask used twice."""
    monkeypatch.setattr(protocol, "CHUNK", 128)
    monkeypatch.setattr(protocol, "IN_FLIGHT", 2)
    monkeypatch.setattr(steps, "CHUNK", 128)
    monkeypatch.setattr(steps, "IN_FLIGHT", 2)
    mask = np.random.default_rng(0).random((3, 11, 11)) < kept
    operators = (
        op.Input("input", (), (3, 11, 11)),
        op.MaskedReLU("mixed", ("input",), (3, 11, 11), mask, np.array([[0.1] * 3, [0.5] * 3, [0.2] * 3])),
        op.MaxPool("pool", ("mixed",), (3, 5, 5), (3, 3), (2, 2), (0, 0), (1, 1)),
    )
    program = two_party.compile(op.Plan(operators, (3, 11, 11), "pool"))
    x = np.random.default_rng(1).normal(size=(5, 3, 11, 11))
    with two_party.Session.simulated() as session:
        result = session.infer(program, x)
        report = session.report()
    assert np.abs(result - program.plan.evaluate(x)).max() < 1e-3
    predicted = two_party.cost(program, 5)
    assert [(row.rounds, row.sent) for row in report.rows] == [(r.rounds, r.sent) for r in predicted.rows]
    relus = 5 * int(mask.sum())
    assert predicted.row("mixed").rounds >= 5 * -(-relus // 256)


def test_import_brings_no_torch() -> None:
    """Party processes start fast."""
    code = "import sys, tradeoff.engines.two_party; print('torch' in sys.modules, 'typer' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_a_lone_session_has_no_report() -> None:
    with two_party.Session.simulated() as session, pytest.raises(EngineError, match="no inference"):
        session.report()


@pytest.mark.parametrize("options", [{"offline": "none"}, {"offline": "file"}, {"pool": "somewhere"}])
def test_wrong_session_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="offline"):
        two_party.Session.simulated(**options)
