"""Pseudorandom streams: against AES called directly, separation of names, detection of reuse."""

import hashlib
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeoff.core.errors import MissingExtra
from tradeoff.engines.transport.prg import BlockLedger, BlockReuse, Prg, agree

ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers", reason="extra 'private' is missing")

SEED = bytes(range(16))
SESSION = bytes(range(100, 116))
NAME = {"session": SESSION, "inference": 1, "operator": 2, "chunk": 3, "purpose": "mask"}


def aes_blocks(key: bytes, blocks: int) -> bytes:
    """The blocks E(key, 0), E(key, 1), ... one at a time."""
    encryptor = ciphers.Cipher(ciphers.algorithms.AES128(key), ciphers.modes.ECB()).encryptor()
    return b"".join(encryptor.update(counter.to_bytes(16, "big")) for counter in range(blocks))


def test_stream_is_aes_in_counter_mode() -> None:
    message = SESSION + struct.pack("<QQQ", 1, 2, 3) + b"mask"
    key = hashlib.blake2b(message, key=SEED, digest_size=16, person=b"tradeoff-prg").digest()
    expected = np.frombuffer(aes_blocks(key, 40), "<u8")
    assert np.array_equal(Prg(SEED).stream(**NAME).words(80), expected)
    reader = Prg(SEED).stream(**NAME)
    parts = [reader.words(3), reader.bits(100), reader.words((2, 5)).ravel()]
    assert np.array_equal(np.concatenate(parts), expected[:15])


def test_known_words() -> None:
    """The format is fixed: files written by one release are read by the next."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    stream = Prg(key).stream(bytes(16), None, 0, 0, "")
    assert stream.words(2).tolist() == KNOWN
    # NIST SP 800-38A F.1.1: the cipher itself.
    encryptor = ciphers.Cipher(ciphers.algorithms.AES128(key), ciphers.modes.ECB()).encryptor()
    block = encryptor.update(bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"))
    assert block.hex() == "3ad77bb40d7a3660a89ecaf32466ef97"


KNOWN = [2217415964622070321, 7169569150934487676]


@pytest.mark.parametrize(
    "change",
    [
        {"session": bytes(16)},
        {"inference": 2},
        {"inference": None},
        {"operator": 1},
        {"chunk": 0},
        {"purpose": "product"},
        {"purpose": "mask\0"},
    ],
)
def test_every_part_of_the_name_counts(change: dict[str, object]) -> None:
    one = Prg(SEED).stream(**NAME).words(64)
    other = Prg(SEED).stream(**{**NAME, **change}).words(64)
    assert not (one == other).any()
    assert not (Prg(bytes(16)).stream(**NAME).words(64) == one).any()


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 70_000), max_size=6))
def test_how_a_stream_is_cut_does_not_matter(lengths: list[int]) -> None:
    ledger = BlockLedger()
    stream = Prg(SEED, ledger).stream(**NAME)
    parts = [stream.words(length, np.uint32) for length in lengths]
    whole = Prg(SEED).stream(**NAME).words(sum(lengths), np.uint32)
    assert np.array_equal(np.concatenate([*parts, np.empty(0, np.uint32)]), whole)
    assert ledger.blocks == -(-4 * sum(lengths) // 16)
    assert ledger.streams == (sum(lengths) > 0)


def infer(prg: Prg, inference: int) -> None:
    """Streams as an inference of three operators uses them."""
    for operator in range(3):
        for chunk in range(2):
            for purpose in ("mask", "product"):
                prg.stream(SESSION, inference, operator, chunk, purpose).words(100)


def test_ledger_accepts_a_session_of_three_inferences() -> None:
    ledger = BlockLedger()
    prg = Prg(SEED, ledger)
    prg.stream(SESSION, None, 0, 0, "mask").words(100)
    for inference in range(3):
        infer(prg, inference)
    assert ledger.streams == 1 + 3 * 3 * 2 * 2
    assert ledger.blocks == 50 * ledger.streams


@pytest.mark.parametrize("dropped", ["session", "inference", "operator", "chunk", "purpose"])
def test_ledger_catches_a_name_that_drops_a_part(dropped: str) -> None:
    class Forgetful(Prg):
        def derive(self, session, inference, operator, chunk, purpose) -> bytes:
            name = {
                "session": session,
                "inference": inference,
                "operator": operator,
                "chunk": chunk,
                "purpose": purpose,
            }
            name[dropped] = {"session": bytes(16), "purpose": ""}.get(dropped, 0)
            return super().derive(**name)

    prg = Forgetful(SEED, BlockLedger())
    changed = {**NAME, dropped: {"session": bytes(15) + b"x", "purpose": "other"}.get(dropped, 9)}
    prg.stream(**NAME).words(8)
    with pytest.raises(BlockReuse, match="blocks 0 to 3"):
        prg.stream(**changed).words(8)


def test_ledger_reports_the_blocks_that_overlap() -> None:
    ledger = BlockLedger()
    ledger.record(b"k", 0, 160)
    ledger.record(b"k", 320, 330)
    ledger.record(b"k", 330, 340)
    ledger.record(b"other", 0, 160)
    assert ledger.blocks == 10 + 2 + 10
    with pytest.raises(BlockReuse, match="blocks 20 to 21"):
        ledger.record(b"k", 170, 999)


def test_bytes_look_uniform() -> None:
    counts = np.bincount(Prg(SEED).stream(**NAME).words(125_000).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 400  # 255 degrees of freedom; p of about 1e-8


def test_agreement_depends_on_both_seeds() -> None:
    assert agree(SEED, SESSION) != agree(SESSION, SEED) != agree(SEED, SEED)
    with pytest.raises(ValueError, match="16 bytes"):
        agree(SEED, b"short")


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Prg(b"short")
    for change, message in (
        ({"session": b"short"}, "16 bytes"),
        ({"inference": -1}, "out of range"),
        ({"inference": 2**64 - 1}, "out of range"),
        ({"chunk": 2**64}, "out of range"),
        ({"purpose": 256 * "x"}, "255 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            Prg(SEED).stream(**{**NAME, **change})
    stream = Prg(SEED).stream(**NAME)
    with pytest.raises(ValueError, match="contiguous"):
        stream.fill(np.empty((4, 4), np.uint64).T)
    with pytest.raises(ValueError, match="unsigned"):
        stream.fill(np.empty(4, np.int64))


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(MissingExtra, match=r"tradeoff\[private\]"):
        Prg(SEED).stream(**NAME)
