"""Servers that cheat are noticed, whatever they send; what servers see is uniform, or leaks as documented."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from tradeoff.engines import shamir
from tradeoff.engines.shamir import InconsistentShares, Options, field
from tradeoff.engines.shamir.protocols import nonnegative, relu, truncate
from tradeoff.engines.shamir.server import Server
from tradeoff.engines.transport.errors import PeerError

MESSAGES = [
    "a linear layer",
    "a truncation",
    "a comparison",
    "a comparison's tree",
    "a product",
    "the result",
]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


X = np.random.default_rng(0).normal(size=(2, 4))


class Liar(Server):
    """Cheats as server ``cheater``, and then accuses nobody."""

    cheater = 0

    def _interpolate(self, shares: Any, degree: int, what: str) -> Any:
        if self.net.me != self.cheater:
            return super()._interpolate(shares, degree, what)
        return self._scheme.open(shares, degree)

    def verify(self) -> None:
        if self.net.me != self.cheater:
            super().verify()
            return
        with contextlib.suppress(InconsistentShares):
            super().verify()
        self._expected = []


def cheating(cheater_: int, what: str, change: Callable[[Any, int], Any]) -> type[Server]:
    """A server that changes what it sends of ``what``: ``change(share, receiver)``."""

    class Cheating(Liar):
        cheater = cheater_

        def send(self, to: int, share: Any, kind: str) -> None:
            if self.net.me == self.cheater and kind == what:
                share = change(share.copy(), to)
            super().send(to, share, kind)

    return Cheating


def miscomputing(cheater_: int, what: str, change: Callable[[Any, int], Any]) -> type[Server]:
    """A server that changes its share of a product, and is consistent about it: an additive error."""

    class Miscomputing(Liar):
        cheater = cheater_

        def reduce(self, product: Any, kind: str) -> Any:
            if self.net.me == self.cheater and kind == what:
                product = change(product.copy(), 0)
            return super().reduce(product, kind)

    return Miscomputing


def add_at(index: int, error: int) -> Callable[[Any, int], Any]:
    def change(share: Any, to: int) -> Any:
        flat = share.reshape(-1)
        flat[index % flat.size] = field.add(flat[index % flat.size], field.element(error))
        return share

    return change


def different(share: Any, to: int) -> Any:
    """Another error for every receiver."""
    return field.add(share, field.element(1000 + 7 * to))


def one_copy(copy: int) -> Callable[[Any, int], Any]:
    """An error on x y alone, or on (alpha x) y alone."""

    def change(share: Any, to: int) -> Any:
        if len(share) == 2:
            share[copy] = field.add(share[copy], field.element(5))
            return share
        return field.add(share, field.element(5))

    return change


ATTACKS: dict[str, Callable[[Any, int], Any]] = {
    "a bit": add_at(0, 1),
    "large": add_at(3, field.PRIME // 2),
    "different": different,
    "x y alone": one_copy(0),
    "alpha x y alone": one_copy(1),
    "both": lambda share, to: field.add(share, field.element(9)),
    "zeros": lambda share, to: np.zeros_like(share),
    "not elements": lambda share, to: np.full_like(share, (1 << 64) - 1),
}


def caught(program: Any, program_runner: Any, server_class: type[Server]) -> BaseException | None:
    """What a run ends with; None if it reveals a result."""
    try:
        program_runner(program, X, server_class=server_class)
    except (InconsistentShares, PeerError) as error:
        return error
    return None


@pytest.mark.parametrize("what", [*MESSAGES, "a masked value"])
@pytest.mark.parametrize("numbers", [(3, 1), (5, 1), (5, 2)])
def test_every_wrong_message_is_noticed(program_runner: Any, numbers: Any, what: str) -> None:
    """Before the result is out, by every kind of error, from every server in turn; where products are opened
    with redundancy to spare, the cheater is named."""
    program = program_of(numbers, masked=what == "a masked value")
    for number, (name, change) in enumerate(ATTACKS.items()):
        cheater = number % numbers[0]
        error = caught(program, program_runner, cheating(cheater, what, change))
        assert isinstance(error, InconsistentShares), f"{name} by server {cheater}: {error!r}"
        assert cheater in error.suspects, f"{name}: {error}"
        if numbers == (5, 1):
            assert error.suspects == (cheater,)


@pytest.mark.parametrize("what", ["a linear layer", "a comparison's tree", "a product", "a masked value"])
@pytest.mark.parametrize("numbers", [(3, 1), (5, 2)])
def test_every_wrong_computation_is_noticed(program_runner: Any, numbers: Any, what: str) -> None:
    """Additive errors on x y, on (alpha x) y and on both, which no redundancy shows: by the verification."""
    program = program_of(numbers, masked=what == "a masked value")
    for number, name in enumerate(("a bit", "large", "x y alone", "alpha x y alone", "both", "zeros")):
        cheater = number % numbers[0]
        error = caught(program, program_runner, miscomputing(cheater, what, ATTACKS[name]))
        assert isinstance(error, InconsistentShares), f"{name} by server {cheater}: {error!r}"
        assert error.layer == "verification", name


@pytest.mark.parametrize("what", ["a verification", "a seed", "a key's multiple"])
def test_the_verification_itself_cannot_be_cheated(program_runner: Any, what: str) -> None:
    program = program_of((3, 1), masked=True)
    for cheater, change in enumerate((ATTACKS["a bit"], ATTACKS["different"], ATTACKS["zeros"])):
        for attack in (cheating, miscomputing) if what != "a seed" else (cheating,):
            error = caught(program, program_runner, attack(cheater, what, change))
            assert isinstance(error, InconsistentShares), f"{attack.__name__} {cheater}: {error!r}"


def test_no_seed_before_all_messages_are_received(program_runner: Any) -> None:
    """Who knew the random coefficients before its last message could choose errors that cancel."""
    shown: list[str] = []

    class Late(Server):
        def send(self, to: int, share: Any, what: str) -> None:
            if self.net.me != 1 or what != "a receipt":
                super().send(to, share, what)
            if self.net.me != 1:
                shown.append(what)

    program = program_of((3, 1), masked=True)
    with pytest.raises(PeerError):
        program_runner(program, X, server_class=Late)
    assert "a receipt" in shown
    assert "a seed" not in shown


def program_of(numbers: tuple[int, int], *, masked: bool) -> Any:
    nonlinear = "masked" if masked else "strict"
    servers, threshold = numbers
    return shamir.compile(
        mlp(), (4,), servers=servers, threshold=threshold, security="abort", nonlinear=nonlinear
    )


@pytest.mark.parametrize("numbers", [(3, 1), (5, 2), (5, 1)])
def test_random_single_errors_never_pass(protocol_runner: Any, numbers: Any) -> None:
    """200 trials: one element of one opening of one server changed by a random amount."""
    rng = np.random.default_rng(5)
    options = Options(*numbers, "abort", "masked")
    x = field.elements(np.array([5, -7, 1 << 20]))
    kinds = ["a masked value", "a product"]
    for trial in range(70):
        what, error = kinds[trial % 2], int(rng.integers(1, field.PRIME))
        change = add_at(int(rng.integers(0, 6)), error)
        attack = miscomputing if trial % 3 == 0 and numbers != (5, 1) else cheating
        server_class = attack(int(rng.integers(0, numbers[0])), what, change)
        with pytest.raises((InconsistentShares, PeerError)):
            protocol_runner(options, relu, x, server_class=server_class)


def test_honest_runs_never_raise(program_runner: Any) -> None:
    for numbers in ((3, 1), (4, 1), (5, 1), (5, 2)):
        for nonlinear in ("strict", "masked"):
            program = shamir.compile(
                mlp(), (4,), servers=numbers[0], threshold=numbers[1], security="abort", nonlinear=nonlinear
            )
            for _ in range(3):
                results = program_runner(program, X)
                client = results[program.options.client][2]
                assert client.verified
                assert not client.corrected


@pytest.mark.parametrize("what", MESSAGES)
def test_semi_honest_runs_do_not_notice(program_runner: Any, what: str) -> None:
    """The tests above are alive: without verification the same errors pass, and results are wrong."""
    program = shamir.compile(mlp(), (4,))
    expected = program.plan.evaluate(X)
    results = program_runner(program, X, server_class=cheating(1, what, ATTACKS["large"]))
    assert np.abs(results[program.options.client][0][0] - expected).max() > 1.0


def test_without_the_verification_an_error_in_a_product_passes(program_runner: Any) -> None:
    """It is the verification that notices, not chance: broken, it lets an additive error through."""

    class Careless(miscomputing(1, "a linear layer", add_at(0, 1 << 40))):  # type: ignore[misc]
        def verify(self) -> None:
            self._pending = []

    program = shamir.compile(mlp(), (4,), security="abort")
    expected = program.plan.evaluate(X)
    result = program_runner(program, X, server_class=Careless)[program.options.client][0][0]
    assert np.abs(result - expected).max() > 1.0


def test_a_framed_server_is_not_the_only_suspect(program_runner: Any) -> None:
    """Server 1 gives server 2 alone a wrong product: server 2's shares are wrong from then on."""

    def frame(share: Any, to: int) -> Any:
        return field.add(share, field.element(5)) if to == 2 else share

    program = program_of((5, 2), masked=True)
    error = caught(program, program_runner, cheating(1, "a linear layer", frame))
    assert isinstance(error, InconsistentShares)
    assert 1 in error.suspects


@pytest.mark.parametrize("what", [*MESSAGES[:2], "a masked value", "a product", "the result"])
def test_robust_corrects_a_liar(program_runner: Any, what: str) -> None:
    program = shamir.compile(mlp(), (4,), servers=5, security="robust", nonlinear="masked")
    for cheater, change in ((0, ATTACKS["different"]), (3, ATTACKS["zeros"])):
        results = program_runner(program, X, server_class=cheating(cheater, what, change))
        client = results[program.options.client][2]
        assert np.abs(results[program.options.client][0][0] - program.plan.evaluate(X)).max() < 5e-3
        assert client.verified
        honest = next(results[server][0] for server in range(5) if server != cheater)
        assert honest.corrected | client.corrected == {cheater}


def test_two_liars_are_too_many_for_five_servers(program_runner: Any) -> None:
    program = shamir.compile(mlp(), (4,), servers=5, security="robust", nonlinear="masked")

    class Two(Server):
        def send(self, to: int, share: Any, kind: str) -> None:
            lies = self.net.me in (1, 2) and kind == "a product"
            super().send(to, field.add(share, field.element(3 + self.net.me)) if lies else share, kind)

    assert caught(program, program_runner, Two) is not None


def uniform_bins(opened: Any) -> float:
    """p-value of the opened values' high bits being uniform."""
    counts = np.bincount((np.asarray(opened).ravel() >> np.uint64(53)).astype(int), minlength=256)
    return float(stats.chisquare(counts).pvalue)


VERY_DIFFERENT = [np.zeros(6000, int), np.full(6000, (1 << 21) - 1)]


@pytest.mark.parametrize("value", VERY_DIFFERENT, ids=["zeros", "large"])
@pytest.mark.parametrize("security", ["semi-honest", "abort"])
def test_what_servers_see_is_uniform(protocol_runner: Any, value: Any, security: Any) -> None:
    """Every opening of a strict comparison and of a truncation, for two very different inputs."""
    options = Options(3, 1, security, bound_bits=22)
    x = field.elements(value)

    def both(server: Any, shared: Any) -> Any:
        return truncate(server, relu(server, shared), 13)

    ran = protocol_runner(options, both, x, verify=False)
    openings = ran.opened[1]
    assert len(openings) >= 8
    for opened in openings:
        assert uniform_bins(opened) > 1e-4


@pytest.mark.parametrize("value", VERY_DIFFERENT, ids=["zeros", "large"])
def test_masked_openings_are_not_uniform(protocol_runner: Any, value: Any) -> None:
    """The test above is alive, and masked mode leaks as documented."""
    ran = protocol_runner(Options(nonlinear="masked"), nonnegative, field.elements(value))
    assert uniform_bins(ran.opened[0][0]) < 1e-4


def masked_sizes(protocol_runner: Any, magnitude: int, count: int, deal: Any = None) -> Any:
    """log2 |y| of what a server sees of ``count`` values of one magnitude."""
    x = field.elements(np.full(count, magnitude))
    ran = protocol_runner(Options(nonlinear="masked"), nonnegative, x, deal=deal)
    return np.log2(np.abs(field.integers(ran.opened[0][0][0])).astype(float))


def advantage(one: Any, other: Any) -> float:
    """Total variation between two histograms of sizes, less what equal ones of that many samples show."""
    bins = np.arange(0, 60.5, 1.0)
    a, b = (np.histogram(sizes, bins)[0] / len(sizes) for sizes in (one, other))
    return float(np.abs(a - b).sum() / 2)


def test_the_leak_of_masked_comparisons_is_the_documented_one(protocol_runner: Any) -> None:
    """Advantage about |log2 ratio| / kappa for one value; with a uniform factor it is nearly 1."""
    kappa, count = 58 - 22, 20_000
    base = masked_sizes(protocol_runner, 1 << 10, count)
    for doublings in (1, 4, 8):
        other = masked_sizes(protocol_runner, 1 << (10 + doublings), count)
        assert advantage(base, other) <= 1.5 * doublings / kappa + 0.05

    def uniform_factor(material: Any) -> Any:
        rng = np.random.default_rng()
        if not hasattr(material, "spread"):
            return {}
        factor = rng.integers(1, 1 << material.spread, material.count)
        sign, offset = rng.choice([-1, 1], material.count), rng.integers(0, factor)
        values = {"sign": sign, "factor": 2 * sign * factor, "offset": sign * (2 * offset + 1)}
        return {name: field.elements(value) for name, value in values.items()}

    seen = [masked_sizes(protocol_runner, 1 << (10 + d), count, uniform_factor) for d in (0, 8)]
    assert advantage(*seen) > 1.5 * 8 / kappa + 0.05


def test_the_mean_size_of_many_values_leaks_in_masked_mode_only(protocol_runner: Any) -> None:
    kappa = 58 - 22
    for bits in (4, 12, 20):
        sizes = masked_sizes(protocol_runner, 1 << bits, 1000)
        assert abs(sizes.mean() - kappa / 2 - 1 - bits) < 1.5
        x = field.elements(np.full(1000, 1 << bits))
        strict = protocol_runner(Options(), nonnegative, x).opened[0][0]
        sizes = np.log2(np.abs(field.integers(strict)).astype(float) + 1)
        assert abs(sizes.mean() - 58.55) < 0.2  # that of uniform elements, whatever the value


def test_no_opening_repeats(program_runner: Any, protocol_runner: Any) -> None:
    """The same input twice in a session, and in two sessions: nothing that is opened is equal."""
    program = shamir.compile(mlp(), (4,), nonlinear="masked")
    seen: list[Any] = []

    class Watching(Server):
        def _interpolate(self, shares: Any, degree: int, what: str) -> Any:
            values = super()._interpolate(shares, degree, what)
            if self.net.me == 0:
                seen.extend(values.ravel().tolist())
            return values

    for _ in range(2):
        program_runner(program, X, server_class=Watching, inferences=2)
    assert len(seen) > 100
    assert len(set(seen)) == len(seen)
