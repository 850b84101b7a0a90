"""Downloads against a real server on the loopback: verified, bounded, retried, atomic."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tradeoff.core.errors import DataError
from tradeoff.data import downloads
from tradeoff.data.downloads import RemoteFile, download

CONTENT = b"pixels" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)  # type: ignore[attr-defined]
        asked = len(self.server.requests)  # type: ignore[attr-defined]
        if self.path == "/busy" and asked < 3:
            return self.answer(503, b"")
        if self.path == "/absent":
            return self.answer(404, b"")
        if self.path == "/truncated":
            return self.answer(200, CONTENT[:100], length=len(CONTENT))
        if self.path == "/hub":
            return self.answer(302, b"", Location="/file", **{"X-Linked-Etag": f'"{SHA256}"'})
        if self.path == "/hub-changed":
            return self.answer(302, b"", Location="/file", **{"X-Linked-Etag": f'"{"0" * 64}"'})
        return self.answer(200, CONTENT)

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads._fetch.retry, "wait", lambda state: 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.requests = []
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def remote(server, path: str, max_bytes: int = 1 << 20, digest: str | None = None) -> RemoteFile:
    return RemoteFile(f"http://127.0.0.1:{server.server_port}/{path}", max_bytes, digest)


def test_a_file_is_fetched_once(server, tmp_path):
    for digest in (None, SHA256, hashlib.md5(CONTENT).hexdigest()):
        target = tmp_path / str(digest) / "file"
        assert download(remote(server, "file", digest=digest), target).read_bytes() == CONTENT
        download(remote(server, "file"), target)
    assert server.requests == ["/file"] * 3


def test_the_digest_that_the_hub_announces_is_checked(server, tmp_path):
    assert download(remote(server, "hub"), tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(DataError, match="not the published file"):
        download(remote(server, "hub-changed"), tmp_path / "other")


def test_a_busy_source_is_asked_again(server, tmp_path):
    download(remote(server, "busy"), tmp_path / "file")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("path", "options", "message", "requests"),
    [
        ("absent", {}, "404", 1),
        ("file", {"max_bytes": 100}, "longer than the 100 bytes", 1),
        ("file", {"digest": "0" * 32}, "not the published file", 1),
        ("truncated", {}, "could not download", downloads.ATTEMPTS),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left(server, tmp_path, path, options, message, requests):
    target = tmp_path / "file"
    with pytest.raises(DataError, match=message):
        download(remote(server, path, **options), target)
    assert not [p for p in tmp_path.iterdir() if not p.name.endswith(".lock")]
    assert len(server.requests) == requests


def test_no_server(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="put it at"):
        download(remote(server, "file"), tmp_path / "file")
