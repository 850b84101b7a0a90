"""Files from their public source: bounded, verified, retried, and put in place in one rename."""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_attempt, wait_exponential

from tradeoff.core.errors import DataError

__all__ = ["RemoteFile", "cache_folder", "download", "hub_file", "under_lock"]

log = logging.getLogger(__name__)

ATTEMPTS = 4
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 20
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
DIGESTS = {32: "md5", 64: "sha256"}
"""Length of a hexadecimal digest -> its algorithm."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public source.

    Attributes:
        url: where it is.
        max_bytes: a longer answer is refused.
        digest: hexadecimal MD5 or SHA-256 that the source publishes; None when the answer's own header
            ``X-Linked-Etag`` (SHA-256 of a file on the hub) is all there is.
    """

    url: str
    max_bytes: int
    digest: str | None = None


def hub_file(repository: str, path: str, max_bytes: int) -> RemoteFile:
    """A file of a data set on the Hugging Face hub."""
    return RemoteFile(f"https://huggingface.co/datasets/{repository}/resolve/main/{path}", max_bytes)


def cache_folder(*parts: str) -> Path:
    """A folder for downloaded and decoded data, in the user's cache; made if need be."""
    folder = platformdirs.user_cache_path("tradeoff").joinpath("data", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def under_lock(target: Path) -> Iterator[Path]:
    """Hold the lock of ``target`` and yield a temporary path, renamed to it if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    with FileLock(target.with_name(f".{target.name}.lock")):
        try:
            yield temporary
            if temporary.exists():
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def download(remote: RemoteFile, target: Path) -> Path:
    """``target``, fetched from ``remote`` unless it is there already.

    Raises:
        DataError: the source is out of reach, or the answer is too long, truncated or not what was published.
    """
    if target.exists():
        return target
    with under_lock(target) as temporary:
        if not target.exists():
            log.info("downloading %s", remote.url)
            try:
                _fetch(remote, temporary)
            except (OSError, http.client.HTTPException) as error:
                raise DataError(
                    f"could not download {remote.url}: {error}; fetch it another way and put it at {target}"
                ) from error
    return target


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in TRANSIENT_STATUS
    return isinstance(error, OSError | http.client.HTTPException)


@retry(
    retry=retry_if_exception(_is_transient),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_exponential(multiplier=0.5, max=8),
    before_sleep=before_sleep_log(log, logging.WARNING),
    reraise=True,
)
def _fetch(remote: RemoteFile, path: Path) -> None:
    announced = _AnnouncedDigest()
    opener = urllib.request.build_opener(announced)
    request = urllib.request.Request(remote.url, headers={"User-Agent": "tradeoff"})
    with opener.open(request, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as file:
        expected = remote.digest or announced.digest or _linked_digest(answer.headers)
        hashed = hashlib.new(DIGESTS[len(expected)] if expected else "sha256", usedforsecurity=False)
        received = 0
        while chunk := answer.read(CHUNK_BYTES):
            received += len(chunk)
            if received > remote.max_bytes:
                raise DataError(f"{remote.url} is longer than the {remote.max_bytes:,} bytes expected of it")
            hashed.update(chunk)
            file.write(chunk)
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) != received:
            raise http.client.IncompleteRead(b"", int(length) - received)
    if expected and hashed.hexdigest() != expected:
        raise DataError(
            f"{remote.url} is not the published file: digest {hashed.hexdigest()}, not {expected}"
        )


def _linked_digest(headers: Any) -> str | None:
    digest = (headers.get("X-Linked-Etag") or "").strip('"')
    return digest if len(digest) == 64 else None


class _AnnouncedDigest(urllib.request.HTTPRedirectHandler):
    """Keeps the digest that the hub announces in the answer that redirects to its storage."""

    def __init__(self) -> None:
        self.digest: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.digest = self.digest or _linked_digest(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
