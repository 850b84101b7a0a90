"""Offline pools: the dealer's material for some inferences, written to files before anybody computes.

A pool is a pair of files, ``party-0.pool`` (a seed) and ``party-1.pool`` (a seed and the corrections), each
with a state file beside it that counts the inferences whose material was used. The count is flushed to disk
*before* material is used, and the parties compare pool and count when they meet, so a session that broke off,
a second process and a file restored on one side are all refused. A copy of both sides cannot be noticed: keep
none.

The mask of a private weight is fixed for the pool, so a pool also refuses other weights than those of its
first use: the difference of the two would show.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff.engines.transport import Endpoint
from tradeoff.engines.two_party.correlations import Correlation
from tradeoff.engines.two_party.errors import OfflineExhausted, PoolMismatch, PoolReused
from tradeoff.engines.two_party.offline import Corrections, Generator, Source, correlations
from tradeoff.engines.two_party.prg import SEED_BYTES, BlockLedger
from tradeoff.engines.two_party.program import Program

_MAGIC = b"TDPOOL1\n"
_HEADER_BYTES = 4096
_MEET_TAG = 0xFFFF_FF01
_FIELDS = {
    **dict.fromkeys(("pool", "program", "seed"), str),
    **dict.fromkeys(("batch", "runs", "party", "run_bytes"), int),
}


def write_pool(folder: Path | str, program: Program, batch: int, runs: int) -> tuple[Path, Path]:
    """Make a pool for ``runs`` inferences of ``batch`` images; give each party its two files.

    Returns:
        the folders ``party-0`` and ``party-1``; the files in them are readable by their owner only.

    Raises:
        FileExistsError: there is a pool in the folder already.
        ValueError: no runs or an empty batch.
    """
    if batch < 1 or runs < 1:
        raise ValueError("a pool holds at least one inference of at least one image")
    folders = tuple(Path(folder) / f"party-{party}" for party in (0, 1))
    pool = secrets.token_bytes(16)
    seeds = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
    groups = [step.groups(batch) for step in program.steps]
    run_bytes = sum(correlation.correction_bytes for _, correlation in correlations(groups))
    for party, path in enumerate(folders):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = {
            "pool": pool.hex(),
            "program": program.digest,
            "batch": batch,
            "runs": runs,
            "party": party,
            "seed": seeds[party].hex(),
            "run_bytes": run_bytes if party == 1 else 0,
        }
        descriptor = os.open(path / f"party-{party}.pool", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write((_MAGIC + json.dumps(header).encode()).ljust(_HEADER_BYTES))
            if party == 1:
                generator = Generator(program, batch, seeds, pool)
                for run in range(runs):
                    for _, corrections in generator.corrections(run):
                        file.write(corrections.tobytes())
            file.flush()
            os.fsync(file.fileno())
        _write_state(path / f"party-{party}.state", {"pool": pool.hex(), "consumed": 0, "weights": None})
    return folders[0], folders[1]


def open_pool(
    net: Endpoint, program: Program, batch: int, folder: Path | str, *, ledger: BlockLedger | None = None
) -> Source:
    """This party's source from its pool folder, after comparing with the peer's.

    Raises:
        PoolMismatch: the files are damaged, of another program or batch, or of another pool than the peer's.
        PoolReused: the two sides used different amounts, another process has it open, or the weights changed.
    """
    pool = _open(folder, net.me)
    try:
        _agree_on(pool, net, program, batch)
    except BaseException:
        pool.end()
        raise
    return Source(net.me, pool.seed, pool.identity, pool, first=pool.consumed, ledger=ledger)


def check_pool(folder: Path | str, party: int, program: Program, batch: int | None = None) -> None:
    """Find out before meeting the peer whether a party's pool can serve a program.

    Args:
        batch: images an inference, if they are known.

    Raises:
        FileNotFoundError: there is none.
        PoolMismatch: it is damaged, or of another program or batch.
        PoolReused: another process has it open, or it was used with other weights.
        OfflineExhausted: it is used up.
    """
    pool = _open(folder, party)
    try:
        pool.require(program, pool.batch if batch is None else batch)
        if party == 0:
            pool.bind(program)
        if pool.consumed >= pool.runs:
            raise OfflineExhausted("inference", 1, 0)
    finally:
        pool.end()


def _open(folder: Path | str, party: int) -> PoolFile:
    """A party's pool in its own folder, or in the one that holds both."""
    own = Path(folder) / f"party-{party}"
    return PoolFile(own if own.is_dir() else Path(folder), party)


def _agree_on(pool: PoolFile, net: Endpoint, program: Program, batch: int) -> None:
    """Compare the pool with the program, and with the peer's."""
    pool.require(program, batch)
    mine = np.array([pool.consumed, *np.frombuffer(pool.identity, "<u8")], "<u8")
    expect = (mine.dtype, mine.shape)
    theirs = np.asarray(net.exchange(1 - net.me, mine, tag=_MEET_TAG, expect=expect, offline=True))
    if (theirs[1:] != mine[1:]).any():
        raise PoolMismatch(f"the peer has another pool than {pool.path}")
    if theirs[0] != mine[0]:
        raise PoolReused(
            f"{pool.path}: {mine[0]} inferences are used here and {theirs[0]} at the peer; "
            "a file was restored or a session broke off: make a new pool"
        )
    if net.me == 0:
        pool.bind(program)


class PoolFile:
    """One party's pool: counts what is used before it is used. A feed of :class:`Source`.

    Raises:
        FileNotFoundError: there is none.
        PoolMismatch: it is damaged.
        PoolReused: another process has it open.
    """

    def __init__(self, folder: Path, party: int) -> None:
        self.path = folder / f"party-{party}.pool"
        self._state_path = folder / f"party-{party}.state"
        self._file: BufferedReader = self.path.open("rb")
        try:
            self._open(party)
        except BaseException:
            self._file.close()
            raise

    def _open(self, party: int) -> None:
        header = self._header(party)
        self.identity, self.seed = header["pool"], header["seed"]
        self.program, self.batch, self.runs = header["program"], header["batch"], header["runs"]
        self._run_bytes = header["run_bytes"]
        if self.path.stat().st_size != _HEADER_BYTES + self.runs * self._run_bytes:
            raise PoolMismatch(f"{self.path} is truncated or has grown")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PoolReused(f"{self.path} is in use by another process") from None
        self._state = self._read_state()

    @property
    def consumed(self) -> int:
        """Inferences whose material is used up."""
        return int(self._state["consumed"])

    def require(self, program: Program, batch: int) -> None:
        """Raise :class:`PoolMismatch` unless the pool was made for this program and batch."""
        if self.program != program.digest:
            raise PoolMismatch(f"{self.path} was made for another program")
        if self.batch != batch:
            raise PoolMismatch(f"{self.path} was made for batches of {self.batch} images, not {batch}")

    def bind(self, program: Program) -> None:
        """Refuse other weights than those of the first use."""
        digest = hashlib.sha256()
        for step in program.steps:
            for name, value in step.static_values().items() if step.static_shapes else ():
                digest.update(name.encode() + value.tobytes())
        if self._state["weights"] not in (None, digest.hexdigest()):
            raise PoolReused(f"{self.path} was used with other weights: their difference would show")
        self._save(weights=digest.hexdigest())

    def begin(self, inference: int) -> None:
        """Count the next inference as used, on disk, then make its material available."""
        if inference != self.consumed:
            raise PoolReused(f"{self.path}: inference {inference} is not the next one")
        if self.consumed >= self.runs:
            raise OfflineExhausted("inference", 1, 0)
        self._save(consumed=self.consumed + 1)
        self._file.seek(_HEADER_BYTES + inference * self._run_bytes)

    def corrections(self, inference: int, operator: int, chunk: int, correlation: Correlation) -> Corrections:
        """The next corrections of the file."""
        data = self._file.read(correlation.correction_bytes)
        if len(data) != correlation.correction_bytes:
            raise OfflineExhausted(f"operator {operator}", correlation.correction_bytes, len(data))
        return np.frombuffer(data, "<u8")

    def end(self) -> None:
        """Close the file, which releases it."""
        self._file.close()

    def _header(self, party: int) -> dict[str, Any]:
        text = self._file.read(_HEADER_BYTES)
        try:
            header = json.loads(text[len(_MAGIC) :])
        except (ValueError, RecursionError):
            header = None
        if not text.startswith(_MAGIC) or not isinstance(header, dict) or set(header) != set(_FIELDS):
            raise PoolMismatch(f"{self.path} is not a pool")
        if any(type(header[name]) is not kind for name, kind in _FIELDS.items()) or header["party"] != party:
            raise PoolMismatch(f"{self.path} is not a pool of party {party}")
        try:
            names = {name: bytes.fromhex(header[name]) for name in ("pool", "seed")}
        except ValueError:
            names = {}
        if set(map(len, names.values())) != {SEED_BYTES} or header["batch"] < 1:
            raise PoolMismatch(f"{self.path} is damaged")
        return header | names

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_path.read_text())
            valid = state["pool"] == self.identity.hex() and type(state["consumed"]) is int
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            valid = False
        if not valid or not state["consumed"] >= 0:
            raise PoolMismatch(f"{self._state_path} does not say how much of the pool is used")
        return {"pool": state["pool"], "consumed": state["consumed"], "weights": state.get("weights")}

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        _write_state(self._state_path, self._state)


def _write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the state file and wait until it is on disk."""
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
