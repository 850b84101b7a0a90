"""Servers that crash, stop, say garbage or belong to another session."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tradeoff.core.errors import EngineError
from tradeoff.engines import shamir
from tradeoff.engines.shamir import InconsistentShares
from tradeoff.engines.shamir.server import Server
from tradeoff.engines.transport import PeerLost, PeerTimeout, SimNet, UnexpectedMessage
from tradeoff.engines.transport.errors import PeerError

X = np.random.default_rng(0).normal(size=(2, 4))


def program(**options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    return shamir.compile(model, (4,), nonlinear="masked", **options)


class Vanished(BaseException):
    """Ends a party's thread as a kill ends a process."""


def dying(*victims: int, before: str = "1") -> type[Server]:
    """Servers that vanish when they come to a step."""

    class Dying(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me in victims and self._layer == before:
                self.net.kill()  # type: ignore[attr-defined]
                raise Vanished
            super().send(to, share, what)

    return Dying


class Survivors(SimNet):
    """A net that does not mind parties that vanish."""

    def run(self, target: Any, *args: Any, **kwargs: Any) -> list[Any]:
        def tolerant(net: Any, *more: Any) -> Any:
            try:
                return target(net, *more)
            except Vanished:
                return None
            except PeerError as error:
                return error

        return super().run(tolerant, *args, **kwargs)


@pytest.mark.parametrize(("victims", "verified"), [((), True), ((2,), True), ((1, 3), False)])
@pytest.mark.parametrize("before", ["0", "1", "2.truncate", "reveal"])
def test_robust_survives_crashes(program_runner: Any, victims: Any, verified: bool, before: str) -> None:
    """The same result without one server and without two; with two gone nothing can be verified any more."""
    network = program(servers=5, security="robust")
    net = Survivors(7, recv_timeout=10.0)
    results = program_runner(network, X, server_class=dying(*victims, before=before), net=net)
    (logits,), _, client = results[network.options.client]
    assert np.abs(logits - network.plan.evaluate(X)).max() < 5e-3
    alive = [server for server in range(5) if server not in victims]
    for server in alive:
        assert set(results[server][0].peers.lost) <= set(victims)
        if before != "reveal":
            # The last truncation opens by degree t, with a share to spare; two that vanish just before it may
            # take their shares of the opening before with them, by degree 2 t, which then has none to spare.
            if verified or before != "2.truncate":
                assert results[server][0].verified is verified
            assert set(results[server][0].peers.lost) == set(victims)
    assert set(client.peers.lost) == set(victims)


def test_robust_does_not_survive_more_than_it_can(program_runner: Any) -> None:
    network = program(servers=5, security="robust")
    net = Survivors(7, recv_timeout=10.0)
    results = program_runner(network, X, server_class=dying(1, 2, 3), net=net)
    assert all(isinstance(results[party], PeerError) for party in (0, 4, network.options.client))


@pytest.mark.parametrize("security", ["semi-honest", "abort"])
def test_a_crash_is_named_by_every_survivor(program_runner: Any, security: Any) -> None:
    network = program(security=security)
    net = Survivors(5, recv_timeout=30.0)
    results = program_runner(network, X, server_class=dying(1), net=net)
    for party in (0, 2, network.options.client):
        assert isinstance(results[party], PeerLost)
        assert results[party].peer == 1


def test_a_silent_server_is_a_timeout(program_runner: Any) -> None:
    class Silent(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me != 1 or self._layer != "1":
                super().send(to, share, what)

    results = program_runner(program(), X, server_class=Silent, net=Survivors(5, recv_timeout=4.0))
    blamed = [results[server].peer for server in (0, 2) if isinstance(results[server], PeerTimeout)]
    assert 1 in blamed


def test_a_silent_server_is_dropped_by_robust_servers(program_runner: Any) -> None:
    class Silent(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me != 1 or self._layer != "1":
                super().send(to, share, what)

    network = program(servers=5, security="robust")
    results = program_runner(network, X, server_class=Silent, net=Survivors(7, recv_timeout=4.0))
    assert np.abs(results[network.options.client][0][0] - network.plan.evaluate(X)).max() < 5e-3


@pytest.mark.parametrize(
    "change",
    [
        lambda share, tag: (share.ravel()[:-1], tag),
        lambda share, tag: (share.astype(np.uint32), tag),
        lambda share, tag: (share.astype(float), tag),
        lambda share, tag: (share, tag + 1),
    ],
    ids=["shape", "width", "dtype", "layer"],
)
def test_garbage_names_its_sender_and_layer(program_runner: Any, change: Any) -> None:
    class Garbling(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me == 1 and self._layer == "1":
                share, tag = change(share, self._tag)
                self.net.send(to, share, tag=tag)
                return
            super().send(to, share, what)

    with pytest.raises(UnexpectedMessage, match=r"party 1 in 1") as caught:
        program_runner(program(), X, server_class=Garbling)
    assert caught.value.peer == 1


def test_values_that_are_no_elements_name_their_sender(program_runner: Any) -> None:
    class Wild(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me == 2 and self._layer == "1":
                share = np.full_like(share, (1 << 61) - 1)
            super().send(to, share, what)

    with pytest.raises(InconsistentShares) as caught:
        program_runner(program(), X, server_class=Wild)
    assert caught.value.suspects == (2,)


def test_an_input_that_is_no_element_blames_the_data_owner(program_runner: Any) -> None:
    class Wild(Server):
        def _valid(self, source: int, share: Any, what: str) -> Any:
            return super()._valid(source, share | np.uint64(1 << 63) if what == "the input" else share, what)

    with pytest.raises(InconsistentShares, match="the shares of the input"):
        program_runner(program(), X, server_class=Wild)


def test_an_inconsistent_input_is_caught_by_the_first_checked_opening(program_runner: Any) -> None:
    class Misled(Server):
        def _receive_input(self, step: Any) -> Any:
            share = super()._receive_input(step)
            return share + np.uint64(self.net.me == 1)

    for numbers in ((3, 1), (4, 1), (5, 2)):
        network = program(servers=numbers[0], threshold=numbers[1], security="abort")
        with pytest.raises(InconsistentShares):
            program_runner(network, X, server_class=Misled)


def test_shares_of_another_sharing_are_refused() -> None:
    network = program()
    assert network.shared().digest != network.shared().digest


def test_a_session_reports_only_what_it_ran() -> None:
    with shamir.Session.simulated() as session:
        with pytest.raises(EngineError, match="no inference"):
            session.report()
        session.infer(program(), X)
        assert session.report().party == 0
        assert session.report(4).party == 4
        assert not session.report().verified
        with pytest.raises(EngineError, match="no report of party 3"):
            session.report(3)


def test_sessions_of_several_batches_and_programs() -> None:
    with shamir.Session.simulated() as session:
        for network in (program(), program(security="abort")):
            logits = session.infer(network, np.repeat(X, 3, axis=0)[:5], batch=2)
            assert logits.shape == (5, 2)
            assert np.abs(logits - network.plan.evaluate(np.repeat(X, 3, axis=0)[:5])).max() < 5e-3
            assert session.report().inferences == 3
            assert session.report().total.sent == 3 * shamir.cost(network, 2).total.sent


def test_masked_comparisons_warn_of_their_leak(caplog: pytest.LogCaptureFixture) -> None:
    with shamir.Session.simulated() as session:
        session.infer(program(), X)
        session.infer(program(), X)
    assert sum("how large the compared values are" in record.message for record in caplog.records) == 1
    caplog.clear()
    with shamir.Session.simulated() as session:
        strict = program().with_options(nonlinear="strict")
        for _ in range(2):
            session.infer(strict, X)
    assert not caplog.records


def test_reports_of_robust_sessions_say_who_is_gone(program_runner: Any) -> None:
    from tradeoff.engines.shamir.report import SharedReport
    from tradeoff.engines.transport import Row

    report = SharedReport((), Row("setup", ""), verified=False, lost=(2,), corrected=(1,))
    assert "went on without server 2" in str(report)
    assert "corrected wrong shares of server 1" in str(report)
    assert "not verified" in str(report)
    total = report + SharedReport((), Row("setup", ""), lost=(3,))
    assert (total.lost, total.corrected, total.verified) == ((2, 3), (1,), False)
    assert report.to_json()["lost"] == [2]


def test_import_brings_no_torch() -> None:
    """Party processes start fast."""
    import subprocess
    import sys

    code = "import sys, tradeoff.engines.shamir; print('torch' in sys.modules, 'typer' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
