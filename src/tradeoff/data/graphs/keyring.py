"""Who signed whose key among Debian's developers, and when: timed events that a Debian package ships."""

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tradeoff.core.errors import DataError
from tradeoff.data.graphs.temporal import TemporalEvents, sort_events

KEYRING = Path("/usr/share/keyrings/debian-keyring.gpg")
"""Of the Debian package debian-keyring."""
MAX_LINE = 1 << 16
MAX_SIGNATURES = 10_000_000
SECONDS = 900


def load(root: Path | None) -> TemporalEvents:
    """Signatures among the keys of ``root/debian/debian-keyring.gpg``, else of the installed package's
    keyring.

    Raises:
        DataError: the keyring or ``gpg`` is not here.
    """
    local = None if root is None else root / "debian" / KEYRING.name
    path = local if local is not None and local.is_file() else KEYRING
    if not path.is_file():
        raise DataError(f"no keyring at {path}; run: apt-get install debian-keyring gpg")
    with tempfile.TemporaryDirectory(prefix="tradeoff-") as home:
        command = [
            "gpg",
            "--homedir",
            home,
            "--no-default-keyring",
            "--keyring",
            str(path.resolve()),
            "--batch",
        ]
        command += ["--no-auto-check-trustdb", "--trust-model", "always", "--list-sigs", "--with-colons"]
        try:
            done = subprocess.run(
                command, capture_output=True, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise DataError(f"gpg could not list {path}: {error}; run: apt-get install gpg") from error
    return parse(done.stdout.decode("utf-8", "replace").split("\n"), str(path))


def parse(lines: Iterable[str], origin: str = "") -> TemporalEvents:
    """Events signer -> signed, from the colon format of ``gpg --list-sigs``.

    Signatures by keys of the list itself, one for each pair and time; those of a key on itself are left out.

    Raises:
        DataError: there is no such signature, or more, or longer lines, than any keyring has.
    """
    owners: dict[str, int] = {}
    signatures: list[tuple[int, str, int]] = []
    owner = -1
    for line in lines:
        if len(line) > MAX_LINE or len(signatures) > MAX_SIGNATURES:
            raise DataError(
                f"the list of signatures has a line over {MAX_LINE:,} characters, or too many lines"
            )
        fields = line.split(":")
        if fields[0] == "pub" and len(fields) > 4:
            owner = owners.setdefault(fields[4], len(owners))
        elif (
            fields[0] == "sig"
            and len(fields) > 5
            and fields[5].isascii()
            and fields[5].isdigit()
            and owner >= 0
        ):
            signatures.append((owner, fields[4], int(fields[5][:12])))
    known = {(owners[signer], signed, time) for signed, signer, time in signatures if signer in owners}
    events = np.array(sorted((t, s, e) for s, e, t in known if s != e), np.int64).reshape(-1, 3)
    if not len(events):
        raise DataError("the list holds no signature of one of its keys on another")
    return sort_events(events[:, 1], events[:, 2], events[:, 0], "debian-keyring", origin)
