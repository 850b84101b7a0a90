"""Oblivious transfer against its definition, and the material that is made from it against the dealer's."""

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tradeoff.core import native
from tradeoff.core.errors import ProtocolError
from tradeoff.engines.transport import prg
from tradeoff.engines.transport.prg import Prg
from tradeoff.engines.two_party.activations import Quadratic
from tradeoff.engines.two_party.arithmetic import (
    Convolution,
    Elementwise,
    MatrixProduct,
    Square,
    StaticTriple,
    Triple,
)
from tradeoff.engines.two_party.bits import pack
from tradeoff.engines.two_party.comparison import Comparison
from tradeoff.engines.two_party.correlations import Correlation, Fields, split
from tradeoff.engines.two_party.errors import RangeExceeded
from tradeoff.engines.two_party.ot import extension, products, transfers
from tradeoff.engines.two_party.ot import material as making
from tradeoff.engines.two_party.ot.base import POINT_BYTES, BaseReceiver, BaseSender
from tradeoff.engines.two_party.ot.extension import TABLE_WIDTH, WIDTH, Chooser, Offerer, RowHash
from tradeoff.engines.two_party.ot.making import Draw
from tradeoff.engines.two_party.ot.material import check, flights, maker
from tradeoff.engines.two_party.ot.products import CrossProduct
from tradeoff.engines.two_party.ot.transfers import Transfers
from tradeoff.engines.two_party.sharing import Ring, padded
from tradeoff.engines.two_party.truncation import Truncation

SESSION = bytes(range(16))
RINGS = (Ring(64, 16), Ring(32, 8))
Bits = NDArray[np.bool_]


@pytest.fixture(params=["native", "reference"])
def backend(request: pytest.FixtureRequest, require: Any) -> Iterator[None]:
    """With the compiled kernels and with the NumPy reference."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(extension, "_kernels", lambda: None)
        else:
            require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
        yield


def ends(width: int, role: str, *, first: int = 0, ledger: Any = None) -> tuple[Chooser, Offerer]:
    """Both ends of an extension, the base keys dealt by hand."""
    pairs = [(secrets.token_bytes(16), secrets.token_bytes(16)) for _ in range(width)]
    secret = np.random.default_rng().random(width) < 0.5
    keys = [pair[bit] for pair, bit in zip(pairs, secret.astype(int), strict=True)]
    return (
        Chooser(pairs, SESSION, role, ledger, first=first),
        Offerer(secret, keys, SESSION, role, ledger, first=first),
    )


def both_parties(ledgers: tuple[Any, Any] = (None, None)) -> tuple[Transfers, Transfers]:
    """Transfers of party 0 and of party 1."""
    down = ends(WIDTH, "down", first=1 << 62)  # party 1 chooses
    up = ends(WIDTH, "up")
    tables = ends(TABLE_WIDTH, "tables")
    hash = RowHash(SESSION)
    return Transfers(0, hash, up[0], down[1], tables[1]), Transfers(1, hash, down[0], up[1], tables[0])


# Base transfers


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("constant", [None, False, True])
def test_base_receiver_knows_the_key_of_its_choice_only(count: int, constant: bool | None) -> None:
    choices = np.random.default_rng(count).random(count) < 0.5
    if constant is not None:
        choices[:] = constant
    sender = BaseSender(b"session")
    receiver = BaseReceiver(b"session", choices, sender.message)
    pairs = sender.keys(receiver.answer, count)
    assert receiver.keys == [pair[int(choice)] for pair, choice in zip(pairs, choices, strict=True)]
    others = {pair[1 - int(choice)] for pair, choice in zip(pairs, choices, strict=True)}
    assert not others & set(receiver.keys)
    assert len({key for pair in pairs for key in pair}) == 2 * count


def test_base_keys_are_bound_to_the_session() -> None:
    sender = BaseSender(b"one session")
    receiver = BaseReceiver(b"another", np.array([True]), sender.message)
    assert receiver.keys[0] not in sender.keys(receiver.answer, 1)[0]


@pytest.mark.parametrize("point", [bytes(POINT_BYTES), b"\x01" + bytes(31), b"\xff" * 32])
def test_points_that_are_not_of_the_group_are_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError, match="not of the group"):
        BaseReceiver(b"", np.array([True]), point)
    with pytest.raises(ProtocolError, match="not of the group"):
        BaseSender(b"").keys(point, 1)


def test_points_of_a_wrong_number_are_refused() -> None:
    sender = BaseSender(b"")
    with pytest.raises(ProtocolError, match="64 bytes, not 32"):
        sender.keys(sender.message, 2)


# Extensions


@given(width=st.sampled_from([128, 256]), words=st.integers(1, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
@pytest.mark.usefixtures("backend")
def test_transpose(width: int, words: int, seed: int) -> None:
    columns = np.random.default_rng(seed).integers(0, 2**64, (width, words), np.uint64)
    rows = extension.rows_of(columns)
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    assert (np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little") == bits.T).all()


def test_native_row_hash_is_sha_256(monkeypatch: pytest.MonkeyPatch, require: Any) -> None:
    """Compiled rows of every number of lanes against hashlib."""
    require(native.extension(), "the compiled extension is missing: install a C++17 compiler")
    rows = np.random.default_rng(0).integers(0, 2**64, (21, 4), np.uint64)
    for count in (0, 1, 7, 8, 21):
        fast = extension.table_pads(rows[:count], rows[-1], (1 << 63) + 5)
        with monkeypatch.context() as patch:
            patch.setattr(extension, "_kernels", lambda: None)
            assert (extension.table_pads(rows[:count], rows[-1], (1 << 63) + 5) == fast).all()


def test_code_words_are_far_apart() -> None:
    words = [extension.code_word(value) for value in range(16)]
    distances = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(words) for b in words[:i]]
    assert set(distances) == {128}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("count", [1, 64, 131])
@pytest.mark.parametrize("constant", [None, False, True])
def test_extended_receiver_has_the_row_of_its_choice(count: int, constant: bool | None) -> None:
    """q ^ (s & choice) is what the receiver holds; with s it would have the other one, without it has not."""
    choices = np.random.default_rng(count).random(count) < 0.5
    if constant is not None:
        choices[:] = constant
    chooser, offerer = ends(WIDTH, "test")
    seen = []
    for call in range(2):
        rows, first, message = chooser.request(pack(choices)[None])
        sent, sent_first = offerer.answer(message)
        assert first == sent_first == call * extension.rounded(count)
        picked = np.zeros(len(rows), bool)
        picked[:count] = choices
        both = np.stack([sent, sent ^ offerer.secret])
        assert (rows == np.where(picked[:, None], both[1], both[0])).all()
        assert not (rows == np.where(picked[:, None], both[0], both[1])).all(axis=1).any()
        seen += [row.tobytes() for row in both.reshape(-1, 2)]
    assert len(set(seen)) == len(seen)


@pytest.mark.usefixtures("backend")
def test_table_receiver_has_the_row_of_its_choice() -> None:
    chooser, offerer = ends(TABLE_WIDTH, "test")
    choices = np.random.default_rng(0).integers(0, 16, 64)
    planes = np.stack([pack(choices >> bit & 1) for bit in range(4)])
    rows, _, message = chooser.request(planes)
    sent, _ = offerer.answer(message)
    for value in range(16):
        equal = (rows == sent ^ (offerer.secret & extension.code_word(value))).all(axis=1)
        assert (equal == (choices == value)).all()


def test_request_hides_the_choices() -> None:
    """The message for constant choices is uniform; without one of the two column streams it is not."""
    chooser, _ = ends(WIDTH, "test")
    for choice in (False, True):
        _, _, message = chooser.request(pack(np.full(1 << 13, choice))[None])
        counts = np.bincount(message.view(np.uint8).ravel(), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_no_stream_of_columns_is_read_twice() -> None:
    """Requests move on; one that starts the streams again is caught."""
    ledger = prg.BlockLedger()
    pairs = [(secrets.token_bytes(16), secrets.token_bytes(16)) for _ in range(WIDTH)]
    choices = pack(np.ones(64))[None]
    first = Chooser(pairs, SESSION, "test", ledger)
    first.request(choices)
    first.request(choices)
    with pytest.raises(prg.BlockReuse):
        Chooser(pairs, SESSION, "test", ledger).request(choices)


# Correlated transfers


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(("count", "width"), [(1, 1), (5, 3), (64, 1), (130, 2)])
def test_shares_of_choice_times_difference(ring: Ring, count: int, width: int) -> None:
    zero, one = both_parties()
    generator = np.random.default_rng(count)
    bits = generator.random(count) < 0.5
    delta = generator.integers(0, 2**ring.bits, (count, width), dtype=ring.dtype)
    chosen, message = one.choose([bits])
    offered = zero.offer(message)
    at = slice(0, count)
    share, corrections = offered.elements(at, delta, ring)
    total = share + chosen.elements(at, corrections, ring)
    assert (total == bits[:, None] * delta).all()
    other = offered.hash.elements(
        np.where(bits[:, None], offered.zero[at], offered.one[at]), 1 << 62, width, ring
    )
    assert (other != chosen.hash.elements(chosen.pads[at], chosen.first, width, ring)).any(axis=1).all()


def test_shares_of_choice_times_bits() -> None:
    zero, one = both_parties()
    generator = np.random.default_rng(0)
    bits, delta = generator.random(192) < 0.5, generator.integers(0, 2**64, (2, 2), np.uint64)
    chosen, message = zero.choose([bits[:64], bits[64:]])
    share, corrections = one.offer(message).planes(slice(64, 192), delta)
    assert (share ^ chosen.planes(slice(64, 192), corrections) == delta & pack(bits[64:])).all()


def test_tables_open_at_the_choice() -> None:
    zero, one = both_parties()
    generator = np.random.default_rng(0)
    choices = generator.integers(0, 16, 128)
    entries = generator.integers(0, 2**64, (16, 11, 2), np.uint64)
    chosen, message = one.choose_tables(np.stack([pack(choices >> bit & 1) for bit in range(4)]))
    encrypted = zero.offer_tables(message).encrypt(slice(0, 2), entries)
    opened = np.unpackbits(chosen.open(slice(0, 2), encrypted).view(np.uint8), axis=1, bitorder="little")
    clear = np.unpackbits(entries.view(np.uint8), axis=2, bitorder="little")
    assert (opened == clear[choices, :, np.arange(128)].T).all()


# Products

MAPS: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "matrix": (MatrixProduct(), (3, 5), (2, 5)),
    "one element": (MatrixProduct(), (1, 1), (1, 1)),
    "convolution": (Convolution((2, 1), (1, 0), (1, 2)), (2, 3, 5, 7), (4, 3, 3, 2)),
    "grouped": (Convolution((1,), (1,), (1,), groups=2), (3, 4, 5), (6, 2, 3)),
    "depthwise": (Convolution((1, 1), (1, 1), (1, 1), groups=3), (1, 3, 4, 4), (3, 1, 3, 3)),
    "channels": (Elementwise(), (2, 3, 4, 5), (3, 1, 1)),
    "coefficients": (Elementwise(), (2, 3, 7), (2, 1, 7)),
    "positions": (Elementwise(), (4, 3, 7), (7,)),
    "elements": (Elementwise(), (9,), (9,)),
}


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("name", MAPS)
def test_cross_products(name: str, ring: Ring) -> None:
    """Shares of map(left, right) add up; the payload is 16 + element bytes times M a transfer."""
    map, left, right = MAPS[name]
    generator = np.random.default_rng(0)
    a = generator.integers(0, 2**ring.bits, left, dtype=ring.dtype)
    for bits in (5, ring.bits):
        limit = 2 ** min(bits - 1, 62)
        w = ring.elements(generator.integers(1 - limit, limit, right))
        product = CrossProduct(ring, map, left, right, bits)
        zero, one = both_parties()
        chosen, message = zero.choose([product.choices(w)])
        assert message.nbytes == extension.request_bytes(product.transfers)
        share, payload = product.offer(one.offer(message), 0, a)
        assert payload.nbytes == product.payload
        assert (share + product.receive(chosen, 0, payload) == map(a, w)).all()


def test_an_operand_that_does_not_fit_is_refused() -> None:
    product = CrossProduct(RINGS[0], Elementwise(), (1,), (1,), 4)
    assert product.choices(RINGS[0].elements(np.array([-7]))).tolist() == [True, False, False, True]
    with pytest.raises(RangeExceeded, match="8"):
        product.choices(RINGS[0].elements(np.array([8])))


# Material


def material(
    kind: Correlation, static: Fields | None = None, parties: tuple[Transfers, Transfers] | None = None
) -> tuple[Fields, Fields]:
    """Both parties' shares; messages are swapped by hand and checked against what is declared."""
    prgs = [Prg(secrets.token_bytes(16)) for _ in range(2)]
    statics = [dict(static or {}), {}]
    running = [
        maker(kind).make(party, Draw(own.stream(SESSION, 0, 0, 0, "draw"), known))
        for party, own, known in zip(parties or both_parties(), prgs, statics, strict=True)
    ]
    messages = [next(party) for party in running]
    results: list[Any] = [None, None]
    for flight in flights(kind):
        assert tuple(message.nbytes for message in messages) == flight
        replies, messages = messages[::-1], []
        for rank, party in enumerate(running):
            try:
                messages.append(party.send(replies[rank]))
            except StopIteration as stop:
                results[rank] = check(kind, rank, stop.value)
    assert None not in results
    return results[0], results[1]


def kinds(ring: Ring) -> dict[str, tuple[Correlation, Fields]]:
    generator = np.random.default_rng(0)

    def operand(*shape: int) -> NDArray[Any]:
        return ring.elements(generator.integers(-(2**9), 2**9, shape))

    cases: dict[str, tuple[Correlation, Fields]] = {
        "square": (Square(ring, 7), {}),
        "triple": (Triple(ring, Elementwise(), (5,), (5,)), {}),
        "matrix triple": (Triple(ring, MatrixProduct(), (2, 3), (4, 3)), {}),
        "truncation": (Truncation(ring, 9, ring.frac_bits), {}),
        "deep truncation": (Truncation(ring, 3, 2 * ring.frac_bits), {}),
        "static matrix": (
            StaticTriple(ring, MatrixProduct(), (2, 3), (4, 3), 10),
            {"weight": operand(4, 3)},
        ),
        "static channels": (
            StaticTriple(ring, Elementwise(), (2, 3, 5), (3, 1), 10),
            {"weight": operand(3, 1)},
        ),
    }
    for radix in (2, 4):
        for how, shift in (("plain", 0), ("truncating", ring.frac_bits)):
            cases[f"comparison {radix} {how}"] = (Comparison(ring, padded(65), radix, shift), {})
    for coefficients in ("public", "private"):
        for how, shift in (("plain", 0), ("truncating", ring.frac_bits)):
            private = coefficients == "private"
            statics = {"linear": operand(5), "quadratic": operand(5)} if private else {}
            cases[f"quadratic {coefficients} {how}"] = (Quadratic(ring, (3, 5), shift, private, 10), statics)
    return cases


def disagreements(kind: Correlation, zero: Fields, one: Fields, static: Fields) -> list[str]:
    """Derived fields that are not what the dealer would have made of the random ones."""
    expected = split(kind.derived, kind.correct(zero, one, static), kind.ring)
    return [name for name, array in expected.items() if (array != one[name]).any()]


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("name", kinds(RINGS[0]))
def test_material_satisfies_the_equations_of_the_dealers(name: str, ring: Ring) -> None:
    kind, static = kinds(ring)[name]
    parties = both_parties()
    for _ in range(2):  # the second time the extensions go on where they were
        zero, one = material(kind, static, parties)
        assert disagreements(kind, zero, one, static) == []


def test_large_material_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same equations, and a last piece that is smaller."""
    monkeypatch.setattr(making, "PIECE", 64)
    ring = RINGS[0]
    operand = ring.elements(np.arange(-10, 10))
    quadratic = Quadratic(ring, (7, 20), 16, True, 6)
    for kind, pieces in (
        (Comparison(ring, 192 + 64, 4, 16), 4),
        (Comparison(ring, 128, 2), 2),
        (Truncation(ring, 70, 16), 2),
        (Square(ring, 70), 2),
        (Triple(ring, Elementwise(), (70,), (70,)), 2),
        (quadratic, 3),
    ):
        assert len(maker(kind).pieces) == pieces  # type: ignore[attr-defined]
        static = {"linear": operand, "quadratic": operand} if kind is quadratic else {}
        assert disagreements(kind, *material(kind, static), static) == []


def test_large_payloads_are_cut_into_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's payload by its outputs, of which the last message has fewer."""
    monkeypatch.setattr(products, "MESSAGE", 2 * 27 * 10 * 32 * 8)
    ring = RINGS[0]
    weight = ring.elements(np.random.default_rng(0).integers(-500, 500, (5, 3, 3, 3)))
    kind = StaticTriple(ring, Convolution((1, 1), (1, 1), (1, 1)), (2, 3, 4, 4), (5, 3, 3, 3), 10)
    assert len(flights(kind)) == 2 * 3
    assert sum(map(sum, flights(kind))) == 64 * 16 * (9 + 9 + 5) + 27 * 10 * 5 * 32 * 8
    assert disagreements(kind, *material(kind, {"weight": weight}), {"weight": weight}) == []


@pytest.mark.parametrize(
    "name", ["square", "static matrix", "truncation", "comparison 2 plain", "comparison 4 truncating"]
)
def test_a_transfer_that_forgets_the_difference_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: Any, at: slice, delta: Any, ring: Ring) -> Any:
        return original(self, at, np.zeros_like(delta), ring)

    original = transfers.Offered.elements
    monkeypatch.setattr(transfers.Offered, "elements", forgetful)
    kind, static = kinds(RINGS[0])[name]
    assert disagreements(kind, *material(kind, static), static)


def test_a_code_that_does_not_depend_on_the_choice_opens_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of tables does fail for a code of distance 0: every entry has the same pad."""
    monkeypatch.setattr(transfers, "code_word", lambda value: np.zeros(4, np.uint64))
    with pytest.raises(AssertionError):
        test_tables_open_at_the_choice()


def test_masks_are_uniform() -> None:
    """Sums of bits make a uniform mask, and each party's share of it is uniform."""
    kind = Truncation(RINGS[0], 1 << 11, 16)
    zero, one = material(kind)
    for array in (zero["r"], one["r"], zero["r"] + one["r"], zero["rho"], one["m"]):
        counts = np.bincount(np.frombuffer(array.tobytes(), np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_bytes_are_those_of_the_arithmetic() -> None:
    """16 bytes a 1-of-2 transfer and 32 a 1-of-16 one, plus payload; printed."""
    ring, n = RINGS[0], 64
    bits = 64 * (16 + 8)
    plain = {}
    for radix, nodes in (
        (2, 62 * 2 * (16 + 2 / 8) + 2 * (16 + 1 / 8)),
        (4, 20 * (3 * 32 + 16 * 22 / 8) + 2 * 32 + 16 * 15 / 8),
    ):
        both = sum(map(sum, flights(Comparison(ring, n, radix)))) / n
        coin = (16 + 16) + (16 + 8)
        plain[radix] = both
        assert both == pytest.approx(bits + nodes + coin)
    fused = sum(map(sum, flights(Comparison(ring, n, 4, 16)))) / n
    assert fused == plain[4] + 2 * 8
    truncation = sum(map(sum, flights(Truncation(ring, n, 16)))) / n
    assert truncation == bits
    convolution = StaticTriple(ring, Convolution((1, 1), (1, 1), (1, 1)), (4, 16, 4, 4), (32, 16, 3, 3), 20)
    weight_bits, met = 32 * 16 * 9 * 20, 4 * 16
    assert sum(map(sum, flights(convolution))) == weight_bits * (16 + 8 * met)
    print(
        f"\nboth directions: ReLU {plain[4]} (1-of-16) or {plain[2]} (1-of-2), truncating {fused}; "
        f"truncation {truncation}; second convolution of the digits network: {weight_bits} transfers"
    )
