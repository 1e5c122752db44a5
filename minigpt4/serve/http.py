"""The HTTP server of the page and of the API: uvicorn's, with limits for clients that stall."""

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_WITHIN = 10.0  # seconds for the headers of a request, and for the rest of one that was answered before its end
READ_WITHIN = 60.0  # seconds in which a client must read something of an answer that waits for it
_GRACE = 5  # seconds that answers under way have when the server ends


def most_connections() -> int:
    """Half of the files that this process may open, at most 1000: the others are for pictures, models and logs."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1000
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1000 if files == resource.RLIM_INFINITY else max(8, min(1000, files // 2))


MOST_CONNECTIONS = most_connections()


class _Protocol(H11Protocol):
    """A connection, which is closed when its client lets a deadline pass, or when there are too many.

    uvicorn itself closes only connections on which nothing arrives after an answer.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._arriving: asyncio.TimerHandle | None = None  # until the headers are there
        self._unread: asyncio.TimerHandle | None = None  # until the client reads
        self._limit_connections()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_WITHIN, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._arriving)
        _cancel(self._unread)

    @property
    def _idle(self) -> bool:
        """Whether no request of this connection is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Sets a deadline when a request begins to arrive, and takes it back when it is passed on."""
        if not self._idle:
            _cancel(self._arriving)
            self._arriving = None
        elif self._arriving is None:
            self._arriving = self.loop.call_later(HEADERS_WITHIN, self.transport.abort)

    def _limit_connections(self) -> None:
        """Of too many connections, ends the oldest on which no request is under way."""
        others = [c for c in self.connections if isinstance(c, _Protocol) and not c.transport.is_closing()]
        if len(others) > MOST_CONNECTIONS:
            min((c for c in others if c._idle), key=lambda c: c._opened).transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Serves an app on a socket that is bound already; `run` does until Ctrl-C.

    Args:
        log_level: of uvicorn's messages; "info" logs each request.
    """

    def __init__(self, app: ASGIApp, place: socket.socket, log_level: str = "info"):
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                log_config=None,
                log_level=log_level,
                backlog=max(8, MOST_CONNECTIONS // 4),  # so many are accepted before the first is counted
                timeout_graceful_shutdown=_GRACE,
            )
        )
        self._place = place

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets or [self._place])

    def run_in_thread(self) -> None:
        """Serves beside the caller, until `close`; returns once it listens."""
        self.config.timeout_graceful_shutdown = None  # what is under way then ends with the process
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self.started:
            time.sleep(0.01)

    def close(self) -> None:
        """Ends what `run_in_thread` began, and waits for it a little."""
        self.should_exit = True
        self._thread.join(_GRACE)
