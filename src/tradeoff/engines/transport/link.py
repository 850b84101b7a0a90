"""One link: a socket to one peer, its outgoing queue, and the thread that reads and writes it.

The thread reads while it writes, so two parties may both send first, whatever the size. It stops reading
when the protocol does not take what came: TCP then stops the sender. A sender writes by itself as much as the
socket takes at once, and a receiver reads by itself for the first moments of its wait: that saves two changes
of thread for small messages. The rest is the thread's.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from tradeoff.engines.transport.accounting import OFFLINE, ONLINE
from tradeoff.engines.transport.config import Config
from tradeoff.engines.transport.endpoint import Outgoing
from tradeoff.engines.transport.errors import MalformedFrame, PeerLost, PeerTimeout
from tradeoff.engines.transport.failures import announce, understand
from tradeoff.engines.transport.frames import (
    HEADER_BYTES,
    Frame,
    FrameError,
    FrameParser,
    FrameType,
    encode_header,
    encode_json,
)
from tradeoff.engines.transport.frames import OFFLINE as OFFLINE_FLAG
from tradeoff.engines.transport.mailbox import Mailbox, MakeError, Message
from tradeoff.engines.transport.tls import describe_security
from tradeoff.engines.transport.transcript import Recorder

_ENDED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
_VIEWS_AT_ONCE = 64
_PULL_SECONDS = 5e-3
_CROWDED_SECONDS = 20e-3
_READS_AT_ONCE = 64
_TLS_RECORD = 16 * 1024
_TLS_RECORD_OVERHEAD = 22
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """The connection to one peer after both have greeted each other.

    Args:
        sock: connected, TLS or plain; the link owns it from here on.
        parser: has read the peer's HELLO; extra: frames that came with it.
        counted: bytes sent and received so far.
    """

    def __init__(
        self,
        sock: socket.socket,
        me: int,
        peer: int,
        session: int,
        config: Config,
        mailbox: Mailbox,
        parser: FrameParser,
        extra: Sequence[Frame],
        counted: tuple[int, int],
        recorder: Recorder | None,
    ) -> None:
        self._me = me
        self.peer = peer
        self.security = describe_security(sock)
        self.wire_sent, self.wire_received = counted
        self.last_received = time.monotonic()
        self.sock = sock
        self._session = session
        self._config = config
        self._mailbox = mailbox
        self._parser = parser
        self._reader = threading.Lock()
        self._pulled = 0.0
        self._crowded_until = 0.0
        self._pull_poll = select.poll()
        self._pull_poll.register(sock, select.POLLIN)
        parser.session = session
        self._extra = list(extra)
        self._recorder = recorder
        shaper = config.shaper(peer)
        self._shaped = shaper.start() if shaper else None
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._outgoing: deque[memoryview] = deque()
        self._queued = 0
        self._sequence = 1
        self._last_ping = self.last_received
        self._closing = False
        self._close_deadline = 0.0
        self._heard_bye = False
        self._ended = False
        self._deaf = False
        self._waste = memoryview(bytearray(4096))
        self._half_closed = False
        self._finished = False
        sock.setblocking(False)
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wakened, select.POLLIN)
        self._interest = select.POLLIN
        self._poll.register(sock, self._interest)
        mailbox.on_room[peer] = self._wake
        self._thread = threading.Thread(target=self._run, name=f"link-{peer}", daemon=True)

    def start(self) -> None:
        """Begin to read and write."""
        self._thread.start()

    @property
    def in_flight(self) -> int:
        """Payload bytes of the message that is arriving now."""
        return self._parser.in_flight

    @property
    def tls_overhead(self) -> int:
        """About how many bytes TLS adds to what was sent and received."""
        if not self._secure:
            return 0
        return (self.wire_sent + self.wire_received) // _TLS_RECORD * _TLS_RECORD_OVERHEAD

    def post(self, messages: Sequence[Outgoing], scope: str) -> None:
        """Queue messages and write what the socket takes at once.

        Raises:
            PeerTimeout: the queue stayed full for ``send_timeout``.
            PeerLost and the others: the link failed.
        """
        size = sum(HEADER_BYTES + message.length for message in messages)
        with self._lock:
            self._wait_room(size, scope)
            views: list[memoryview] = []
            for message in messages:
                views += self._encode(message)
            self._enqueue(views)

    def signal(self, kind: FrameType, contents: dict[str, Any] | None = None) -> None:
        """Queue a control frame, however full the queue is."""
        with self._lock:
            if not self._finished:
                self._signal(kind, contents)

    def pull(self, seconds: float) -> bool:
        """Read in the caller's thread, waiting a moment for something to come; whether it did.

        While somebody pulls, and shortly after, the link's own thread does not read. Where two receivers meet
        it is left to that thread for a while. An emulated link is never pulled: what comes must be stamped
        with its time of arrival.
        """
        if self._shaped or time.monotonic() < self._crowded_until:
            return False
        if not self._reader.acquire(blocking=False):
            self._crowded_until = time.monotonic() + _CROWDED_SECONDS
            return False
        try:
            if self._finished or self._closing or self._full():
                return False
            self._pulled = time.monotonic()
            ready = self._pull_poll.poll(math.ceil(1e3 * min(seconds, _PULL_SECONDS))) or self._ssl_pending()
            if ready:
                self._guard(self._read)
                self._pulled = time.monotonic()
        finally:
            self._reader.release()
        crowded = time.monotonic() < self._crowded_until
        if not ready or crowded or self._finished or self._closing:
            self._resume()
        return bool(ready)

    def flush(self, scope: str) -> None:
        """Wait until the queue is empty."""
        timeout = self._config.send_timeout
        with self._lock:
            if not self._room.wait_for(lambda: not self._outgoing or self._finished, timeout):
                raise PeerTimeout(self.peer, timeout, scope, "room in the queue")

    def close(self, error: BaseException | None = None) -> None:
        """Say goodbye (or why not) and let the thread end; :meth:`join` waits for it."""
        with self._lock:
            if self._finished or self._closing:
                return
            self._say_last(error)
        self._wake()

    def join(self) -> None:
        """Wait until thread and socket are gone."""
        self._thread.join()

    def _wait_room(self, size: int, scope: str) -> None:
        limit, timeout = self._config.send_queue, self._config.send_timeout
        if not (self._queued or self._finished or self._closing):
            return

        def ready() -> bool:
            return not self._queued or self._queued + size <= limit or self._finished or self._closing

        if not ready() and not self._room.wait_for(ready, timeout):
            raise PeerTimeout(self.peer, timeout, scope, "room in the queue")
        if self._finished or self._closing:
            self._mailbox.check(self.peer, scope)
            raise PeerLost(self.peer, scope, "the link is closed")

    def _encode(self, message: Outgoing) -> list[memoryview]:
        flags = OFFLINE_FLAG if message.offline else 0
        header = encode_header(
            FrameType.DATA,
            session=self._session,
            sequence=self._sequence,
            length=message.length,
            tag=message.tag,
            round=message.round,
            flags=flags,
        )
        self._sequence += 1
        head = header + message.descriptor
        if self._recorder:
            self._recorder.write(self.peer, True, head, message.payload)
        if not message.payload.nbytes:
            return [memoryview(head)]
        if self._secure:
            return _records(head, message.payload)
        return [memoryview(head), message.payload]

    def _signal(self, kind: FrameType, contents: dict[str, Any] | None = None) -> None:
        payload = encode_json(contents) if contents is not None else b""
        header = encode_header(kind, session=self._session, sequence=self._sequence, length=len(payload))
        self._sequence += 1
        if self._recorder:
            self._recorder.write(self.peer, True, header, payload)
        self._enqueue([memoryview(header + payload)])

    def _enqueue(self, views: list[memoryview]) -> None:
        idle = not self._outgoing
        self._outgoing.extend(views)
        self._queued += sum(view.nbytes for view in views)
        if idle:
            with contextlib.suppress(OSError):  # the thread meets the same error and says what it means
                self._write_once()
        if self._outgoing:
            self._resume()

    def _write_once(self) -> bool:
        """Write what the socket takes in one call; False if it takes nothing."""
        try:
            if self._secure:
                count = self.sock.send(self._outgoing[0])
            else:
                count = self.sock.sendmsg(list(islice(self._outgoing, _VIEWS_AT_ONCE)))
        except _AGAIN:
            return False
        self.wire_sent += count
        self._queued -= count
        while count:
            first = self._outgoing[0]
            if first.nbytes > count:
                self._outgoing[0] = first[count:]
                break
            count -= first.nbytes
            self._outgoing.popleft()
        return True

    def _resume(self) -> None:
        """Let the link's thread read and write again at once."""
        self._pulled = 0.0
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already; closed: nobody is left to wake
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            self._guard(self._take_extra)
            while not self._finished:
                self._guard(self._step)
        finally:
            self._end()

    def _take_extra(self) -> None:
        for frame in self._extra:
            if frame.session != self._session:
                raise FrameError(f"frame of session {frame.session:016x}")
            self._record_and_handle(frame)

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except FrameError as error:
            self._malformed(str(error))
        except OSError as error:
            self._gone(str(error))

    def _step(self) -> None:
        paused = self._full()
        pulled = not self._closing and time.monotonic() < self._pulled + _PULL_SECONDS
        self._watch(paused, pulled)
        pending = not paused and not pulled and self._ssl_pending()
        pause = min(self._pause(), _PULL_SECONDS if pulled else math.inf)
        ready = dict(self._poll.poll(0 if pending else math.ceil(1e3 * pause)))
        if self._wakened.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wakened.recv(4096)
        events = ready.get(self.sock.fileno(), 0)
        if self._outgoing:
            self._write()
        if paused:
            self.last_received = time.monotonic()
            self._ended = bool(events & _ENDED)
        elif pending or events & ~select.POLLOUT:
            self._read_unless_pulled()
        self._keep_time(time.monotonic())

    def _read_unless_pulled(self) -> None:
        if not self._reader.acquire(blocking=False):
            self._pulled = time.monotonic()
            return
        try:
            self._read()
        finally:
            self._reader.release()

    def _full(self) -> bool:
        """Whether to read no more for now; what a peer sent before it left is read in any case."""
        return not self._closing and not self._ended and self._mailbox.full(self.peer)

    def _watch(self, paused: bool, pulled: bool) -> None:
        incoming = _ENDED if paused else 0 if pulled else select.POLLIN
        interest = incoming | (select.POLLOUT if self._outgoing else 0)
        if interest != self._interest:
            self._poll.modify(self.sock, interest)
            self._interest = interest

    def _ssl_pending(self) -> bool:
        if not isinstance(self.sock, ssl.SSLSocket):
            return False
        with self._lock:
            return self.sock.pending() > 0

    def _pause(self) -> float:
        now = time.monotonic()
        if self._closing:
            return max(self._close_deadline - now, 0.0)
        ping = max(self.last_received, self._last_ping) + self._config.ping_interval
        silence = self.last_received + self._config.recv_timeout
        return max(min(ping, silence) - now, 0.0)

    def _keep_time(self, now: float) -> None:
        if self._closing:
            self._finish_closing(now)
            return
        silent = now - self.last_received
        if silent >= self._config.recv_timeout:
            self._silent()
        elif silent >= self._config.ping_interval and now - self._last_ping >= self._config.ping_interval:
            self._last_ping = now
            self.signal(FrameType.PING)

    def _finish_closing(self, now: float) -> None:
        if self._outgoing and now < self._close_deadline:
            return
        if self._heard_bye or now >= self._close_deadline:
            self._finished = True
        elif not self._half_closed:
            self._half_closed = True
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_WR)  # SSLSocket's own would end TLS for reading

    def _write(self) -> None:
        failed: OSError | None = None
        with self._lock:
            try:
                for _ in range(_VIEWS_AT_ONCE):
                    if not self._outgoing or not self._write_once():
                        break
            except OSError as error:
                failed = error
                self._outgoing.clear()
                self._queued = 0
            self._room.notify_all()
        if failed:
            self._drain()
            raise failed

    def _drain(self) -> None:
        """After a failed write: what the peer said before it closed may explain it."""
        with self._reader, contextlib.suppress(OSError):
            while not self._deaf and (count := self._receive(self._parser.buffer())):
                self._take(count)

    def _read(self) -> None:
        for _ in range(_READS_AT_ONCE):
            space = self._waste if self._deaf else self._parser.buffer()
            try:
                count = self._receive(space)
            except _AGAIN:
                return
            if not count:
                raise ConnectionError("connection closed")
            self.last_received = time.monotonic()
            if not self._deaf:
                self._take(count)
            if self._finished or self._full() or (count < space.nbytes and not self._secure):
                return

    def _receive(self, space: memoryview) -> int:
        if not self._secure:
            return self.sock.recv_into(space)
        with self._lock:
            return self.sock.recv_into(space)

    def _take(self, count: int) -> None:
        self.wire_received += count
        for frame in self._parser.advance(count):
            self._record_and_handle(frame)

    def _record_and_handle(self, frame: Frame) -> None:
        if self._recorder:
            self._recorder.write_frame(self.peer, frame)
        self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        kind = frame.type
        if kind is FrameType.DATA:
            if not self._closing:
                self._deliver(frame)
        elif kind is FrameType.READY:
            self._mailbox.arrive(self.peer)
        elif kind is FrameType.PING:
            self._answer_ping()
        elif kind is FrameType.BYE:
            self._heard_bye = True
            self._mailbox.leave(self.peer)
            self.close()
        elif kind is FrameType.ERROR:
            self._fail(understand(self._me, self.peer, frame.value, self._config.recv_timeout))
            self._finished = True
        elif kind is FrameType.HELLO:
            raise FrameError("a second HELLO")

    def _deliver(self, frame: Frame) -> None:
        size = frame.payload_bytes + frame.overhead_bytes
        release = self._shaped.release(frame.started, size) if self._shaped else 0.0
        message = Message(
            frame.tag, frame.round, frame.value, frame.payload_bytes, frame.overhead_bytes, release
        )
        self._mailbox.deliver(self.peer, OFFLINE if frame.offline else ONLINE, message)

    def _answer_ping(self) -> None:
        with self._lock:
            if not self._outgoing and not self._closing:  # else what is queued shows that we live
                self._signal(FrameType.PONG)

    def _say_last(self, error: BaseException | None) -> None:
        if error is None:
            self._signal(FrameType.BYE)
        else:
            self._signal(FrameType.ERROR, announce(error))
        self._closing = True
        self._close_deadline = time.monotonic() + self._config.close_timeout
        self._room.notify_all()

    def _malformed(self, what: str) -> None:
        peer = self.peer
        self._fail(lambda _: MalformedFrame(peer, what))
        self._deaf = True
        self.close(MalformedFrame(peer, what))

    def _silent(self) -> None:
        peer, seconds = self.peer, self._config.recv_timeout
        self._fail(lambda scope: PeerTimeout(peer, seconds, scope))
        self.signal(FrameType.ERROR, announce(PeerTimeout(peer, seconds)))
        self._finished = True

    def _gone(self, detail: str) -> None:
        peer = self.peer
        if not self._closing:
            self._fail(lambda scope: PeerLost(peer, scope, detail))
        self._finished = True

    def _fail(self, error: MakeError) -> None:
        if not self._closing:
            self._mailbox.fail(self.peer, error)

    def _end(self) -> None:
        with self._lock:
            self._finished = True
            self._outgoing.clear()
            self._queued = 0
            self._room.notify_all()
        if not self._closing:
            self._gone("its link ended")  # keeps the first reason if there is one
        self._mailbox.on_room.pop(self.peer, None)
        with self._reader:
            for sock in (self.sock, self._waker, self._wakened):
                sock.close()


def _records(head: bytes, payload: memoryview) -> list[memoryview]:
    """Split so that the header shares its TLS record with the start of the payload."""
    first = _TLS_RECORD - len(head)
    joined = memoryview(head + bytes(payload[:first]))
    return [joined, payload[first:]] if payload.nbytes > first else [joined]
