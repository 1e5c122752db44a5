"""In front of the page and of the API: by which name they are asked for, and how large a request may be."""

import re
import string
import time
from collections.abc import Collection

import anyio
from anyio import CapacityLimiter, to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt4.serve.address import is_among
from minigpt4.serve.errors import ApiError

REQUEST_TIMEOUT = 60.0  # seconds for a request to arrive
_UPLOAD_SPEED = 100_000  # bytes per second that an upload may count on besides: a video takes its time on a slow line
MAX_VALUES = 20_000  # of a JSON body: some thousand messages
_MAX_OTHER = 1_000_000  # bytes of a JSON body that are not a picture's: of text, and of numbers and indentation
_BASE64 = string.ascii_letters.encode() + string.digits.encode() + b"+/-_="
_AT_ONCE = 2  # bodies that are looked through


class KnownHosts:
    """Middleware that refuses requests for hosts that are not served here.

    A page of another site can give its own name the address of this machine (DNS rebinding), and a browser then lets
    it read what this server answers. The requests still carry the other name.

    Args:
        hosts: see `known_hosts`.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = re.sub(rb":\d*$", b"", dict(scope.get("headers", ())).get(b"host", b"")).decode("latin-1")
        if scope["type"] == "lifespan" or is_among(host, self.hosts):
            return await self.app(scope, receive, send)
        words = (
            f"This server is not '{host[:80]}'. If it is to be asked for by that name, start it with --allowed-hosts."
        )
        await ApiError(421, words, code="unknown_host").response()(scope, receive, send)


class BodyLimit:
    """Middleware that refuses requests that are too large, or take longer than `REQUEST_TIMEOUT` to arrive, and JSON of
    too many values.

    Uploads are passed on as they arrive, other bodies once they are there.

    Args:
        max_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes
        self._readers = CapacityLimiter(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        upload = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        receive = self._bounded(receive, upload)
        try:
            if int(headers.get(b"content-length", 0)) > self.max_bytes:
                raise self._too_large()
            if not upload:
                receive = await self._read(receive)
        except ApiError as error:
            return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)

    async def _read(self, receive: Receive) -> Receive:
        """Reads and checks a body. Returns what gives it once more, and then continues receiving."""
        message, pieces = await receive(), []
        while message.get("more_body"):
            pieces.append(message["body"])
            message = await receive()
        body = b"".join([*pieces, message.get("body", b"")])
        if body:
            await to_thread.run_sync(require_few_values, body, limiter=self._readers)
        ready: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return ready.pop() if ready else await receive()

        return again

    def _bounded(self, receive: Receive, upload: bool) -> Receive:
        """Receives a request as `receive` does, but no more than is allowed, and not for longer."""
        seconds = REQUEST_TIMEOUT + upload * self.max_bytes / _UPLOAD_SPEED
        deadline, read, whole = time.perf_counter() + seconds, 0, False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:  # what comes then is that the client leaves
                return await receive()
            try:
                with anyio.fail_after(deadline - time.perf_counter()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"The request took more than {seconds:.0f} s to arrive.") from None
            if message["type"] == "http.disconnect":
                raise ApiError(499, "The client left.")  # which nobody reads, but is counted
            read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
            if read > self.max_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The request is larger than {self.max_bytes} bytes.", code="request_too_large")


def require_few_values(body: bytes) -> None:
    """Refuses JSON that would take long to parse and to check, or much memory, for its size.

    It counts by a few fast passes over the bytes: with escaped quotes gone, each second piece between quotes is a
    string. Whether it is JSON at all is not checked here.

    Raises:
        ApiError: it has more than `MAX_VALUES` keys and values, too long numbers or text, or is not UTF-8.
    """
    if b"\0" in body:  # in UTF-16 and UTF-32 other bytes would be quotes
        raise ApiError(400, "The body holds a zero byte. Send JSON in UTF-8.", code="invalid_json")
    text = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if text.count(b'"') > 2 * MAX_VALUES:
        raise _too_much(f"{MAX_VALUES} keys and values", "messages or parts")
    pieces = text.split(b'"')
    outside = b"".join(pieces[::2])
    if sum(map(outside.count, (b",", b":", b"[", b"{"))) >= MAX_VALUES:
        raise _too_much(f"{MAX_VALUES} keys and values", "messages or parts")
    if len(outside) > _MAX_OTHER:
        raise _too_much(f"{_MAX_OTHER} bytes of numbers and spaces", "of them")
    if len(body) - len(text) + sum(map(_text_in, pieces[1::2])) > _MAX_OTHER:
        raise _too_much(f"{_MAX_OTHER} bytes of text", "words")


def _text_in(piece: bytes) -> int:
    """How many bytes of a JSON string would be in no picture, as base64 writes it."""
    if not piece.isascii() or piece.count(b"\\u") > piece.count(b"\\u00"):
        return len(piece)  # in memory, each character takes as many bytes as the widest
    return len(piece.translate(None, _BASE64))


def _too_much(what: str, fewer: str) -> ApiError:
    return ApiError(413, f"The body has more than {what}. Send fewer {fewer}.", code="request_too_large")
