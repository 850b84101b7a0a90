"""Sharing, opening, wrong shares, common keys and dealt values; what t servers see is uniform."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradeoff.engines.shamir import Options, Scheme, field
from tradeoff.engines.shamir.errors import InconsistentShares
from tradeoff.engines.shamir.field import PRIME
from tradeoff.engines.shamir.materials import Reduction, StrictSign, Truncation
from tradeoff.engines.shamir.offline import Dealer, Source
from tradeoff.engines.shamir.opening import open_checked
from tradeoff.engines.shamir.peers import Peers
from tradeoff.engines.shamir.sharing import fresh_stream, uniform
from tradeoff.engines.transport import SimNet
from tradeoff.engines.transport.prg import BlockLedger, BlockReuse

SCHEMES = [(3, 1), (4, 1), (5, 1), (5, 2), (7, 3)]


def slow_open(points: dict[int, int]) -> int:
    """Lagrange interpolation at 0, in Python integers."""
    total = 0
    for i, share in points.items():
        weight = 1
        for j in points:
            if j != i:
                weight = weight * (j + 1) * pow(j - i, PRIME - 2, PRIME) % PRIME
        total += share * weight
    return total % PRIME


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SCHEMES), st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=5))
def test_any_t_plus_1_shares_open(numbers: tuple[int, int], values: list[int]) -> None:
    scheme = Scheme(*numbers)
    shares = scheme.share(np.array(values, np.uint64))
    for servers in combinations(scheme.servers, scheme.t + 1):
        chosen = {server: shares[server] for server in servers}
        assert scheme.open(chosen, scheme.t).tolist() == values
        assert slow_open({server: int(share[0]) for server, share in chosen.items()}) == values[0]
    with pytest.raises(ValueError, match=f"needs {scheme.t + 1} shares"):
        scheme.open({server: shares[server] for server in range(scheme.t)}, scheme.t)


@pytest.mark.parametrize("numbers", [(3, 1), (5, 2)])
@pytest.mark.parametrize("secret", [0, 1, PRIME - 1])
def test_t_shares_of_a_fixed_secret_are_uniform(numbers: tuple[int, int], secret: int) -> None:
    scheme = Scheme(*numbers)
    shares = scheme.share(np.full(40_000, secret, np.uint64))
    for server in scheme.servers:
        counts = np.bincount((shares[server] >> np.uint64(53)).astype(int), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
    joint = [(shares[server] >> np.uint64(61 - 4)).astype(int) for server in range(scheme.t)]
    index = np.ravel_multi_index(joint, (16,) * scheme.t)
    assert stats.chisquare(np.bincount(index, minlength=16**scheme.t)).pvalue > 1e-4
    opened = scheme.open(dict(enumerate(shares)), scheme.t)
    assert set(opened.tolist()) == {secret}  # one more share, and nothing is hidden


def test_shares_of_two_secrets_look_alike() -> None:
    scheme = Scheme(3, 1)
    one, other = (scheme.share(np.full(40_000, secret, np.uint64))[2] for secret in (0, PRIME // 3))
    assert stats.ks_2samp(one.astype(float), other.astype(float)).pvalue > 1e-4


def test_a_constant_coefficient_would_be_seen() -> None:
    """The test is alive: without randomness every share is the secret."""
    shares = np.full(40_000, 7, np.uint64)
    counts = np.bincount((shares >> np.uint64(53)).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue < 1e-4


def test_the_one_word_that_is_not_an_element_is_drawn_again() -> None:
    class Words:
        drawn = 0

        def words(self, shape: Any) -> Any:
            Words.drawn += 1
            value = (1 << 64) - 1 if Words.drawn == 1 else 5
            return np.full(shape, value, np.uint64)

    assert uniform(Words(), 3).tolist() == [5, 5, 5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "numbers", [(2, 1), (3, 2), (4, 2), (17, 2), (3, 0), (3, -1), (3.0, 1), (3, True), (0, 0)]
)
def test_schemes_that_there_are_not(numbers: Any) -> None:
    with pytest.raises(ValueError, match=r"servers|whole number"):
        Scheme(*numbers)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"servers": 4, "threshold": 1, "security": "robust"}, None),
        ({"servers": 3, "security": "robust"}, "robust needs more than"),
        ({"servers": 6, "threshold": 2, "security": "abort"}, "abort needs 2t"),
        ({"servers": 7, "threshold": 2, "security": "abort"}, None),
        ({"servers": 16, "threshold": 7}, None),
        ({"security": "malicious"}, "security is one of"),
        ({"nonlinear": "none"}, "nonlinear is one of"),
        ({"frac_bits": 0}, "frac_bits"),
        ({"bound_bits": 13}, "bound_bits"),
        ({"bound_bits": 41}, "bound_bits"),
    ],
)
def test_options_that_there_are_not(options: Any, why: str | None) -> None:
    if why is None:
        Options(**options)
        return
    with pytest.raises(ValueError, match=why):
        Options(**options)


@pytest.mark.parametrize("security", ["abort", "robust"])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("numbers", SCHEMES)
def test_one_wrong_share_is_noticed_and_corrected(numbers: Any, factor: int, security: Any) -> None:
    """By redundancy alone: the honest server that opens names whom it can, and in robust mode goes on."""
    try:
        options = Options(*numbers, security)
    except ValueError:
        pytest.skip("no such mode")
    scheme, degree = options.scheme, factor * options.threshold
    left = scheme.n - degree - 1
    values = uniform(fresh_stream(), 4)
    shares = sharing_of_degree(scheme, values, degree)
    for liar in range(1, scheme.n):
        wrong = {**shares, liar: field.add(shares[liar], np.array([0, 0, 3, 0], np.uint64))}
        if left == 0:
            assert scheme.check(wrong, degree), "without redundancy there is nothing to notice"
        elif security == "robust" and left >= 2:
            opened = open_checked(options, wrong, degree, "layer", "it", trusted=0)
            assert np.array_equal(opened.values, values)
            assert opened.liars == {liar}
        else:
            with pytest.raises(InconsistentShares, match="layer: the shares of it") as caught:
                open_checked(options, wrong, degree, "layer", "it", trusted=0)
            assert liar in caught.value.suspects
            assert 0 not in caught.value.suspects
            if options.authenticated:  # an honest server may have been given a wrong product before
                assert set(caught.value.suspects) == set(range(1, scheme.n))
            elif left >= 2:
                assert caught.value.suspects == (liar,)
    opened = open_checked(options, shares, degree, "layer", "it")
    assert np.array_equal(opened.values, values)
    assert opened.verified == (left > 0)


def sharing_of_degree(scheme: Scheme, values: Any, degree: int) -> dict[int, Any]:
    """A random sharing of another degree than the scheme's."""
    coefficients = [values, *(uniform(fresh_stream(), values.shape) for _ in range(degree))]
    return {
        server: np.array(
            [
                sum(int(c[i]) * pow(server + 1, k, PRIME) for k, c in enumerate(coefficients)) % PRIME
                for i in range(values.size)
            ],
            np.uint64,
        )
        for server in scheme.servers
    }


def sources(options: Options, use: Any) -> list[Any]:
    """Run ``use(source)`` at every server beside a dealer that deals for ``materials``."""

    class Stub:
        def __init__(self) -> None:
            self.options = options

        def setup_materials(self) -> list[Any]:
            return []

        def materials(self, batch: int) -> list[Any]:
            kinds = [Truncation(options, 6, 13), Reduction(options, 5), StrictSign(options, 4)]
            return [(0, kinds), (1, kinds[:2])]

    def party(net: Any) -> Any:
        if net.me == options.dealer:
            dealer = Dealer(net, Stub())  # type: ignore[arg-type]
            dealer.setup()
            dealer.deal(1, 1)
            net.barrier()
            return dealer._alpha
        source = Source(Peers(net, options), BlockLedger())
        source.start()
        result = use(source)
        net.barrier()
        return result

    return SimNet(options.servers + 1, recv_timeout=20.0).run(party)


@pytest.mark.parametrize("from_keys", [True, False])
@pytest.mark.parametrize("numbers", SCHEMES)
def test_doubles_are_sharings_of_both_degrees(
    numbers: Any, from_keys: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From common keys, and from the dealer: random values of degree t, zeros of degree 2t and no less."""
    monkeypatch.setattr(Scheme, "from_keys", from_keys)
    options = Options(*numbers)
    scheme, t = options.scheme, options.threshold

    def use(source: Source) -> Any:
        source.take(0, Truncation(options, 6, 13))
        source.take(0, Reduction(options, 5))
        return [source.doubles((2,)), source.doubles((3,))]

    results = sources(options, use)[: scheme.n]
    for call in range(2):
        random = {server: result[call][0] for server, result in enumerate(results)}
        zeros = {server: result[call][1] for server, result in enumerate(results)}
        assert scheme.check(random, t)
        assert not scheme.check(random, t - 1)
        assert scheme.check(zeros, 2 * t)
        assert not scheme.check(zeros, 2 * t - 1)
        assert not scheme.open(zeros, 2 * t).any()
        assert scheme.open(random, t).all()
    first, second = (scheme.open({s: r[call][0] for s, r in enumerate(results)}, t) for call in (0, 1))
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("security", ["semi-honest", "abort"])
def test_dealt_values_are_what_they_should_be(security: Any) -> None:
    options = Options(3, 1, security)
    results = sources(options, lambda source: source.take(0, Truncation(options, 6, 13)))
    alpha = results[-1]
    fields = {
        name: options.scheme.open({server: results[server][name] for server in range(3)}, 1)
        for name in ("r", "shifted", "top")
    }
    assert np.array_equal(fields["shifted"][0], fields["r"][0] >> np.uint64(13))
    assert np.array_equal(fields["top"][0], fields["r"][0] >> np.uint64(60))
    for values in fields.values():
        assert len(values) == options.copies
        if options.authenticated:
            assert np.array_equal(values[1], field.multiply(values[0], alpha))


def test_no_stream_is_read_twice() -> None:
    """Calls in one inference and in two: a ledger refuses the second use of a block."""
    options = Options(3, 1)

    def use(source: Source) -> int:
        for _ in range(2):
            source.start()
            source._tag = 0
            for _ in range(3):
                source.doubles((40,))
        return 1

    sources(options, use)

    def careless(source: Source) -> int:
        source.doubles((40,))
        source._inference -= 1
        source.start()
        source.doubles((40,))
        return 1

    with pytest.raises(BlockReuse):
        sources(options, careless)
