"""In front of the API's routes: who may come in, with how much, and a note of each that asks for answers."""

import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt4.serve.api_errors import ApiError
from minigpt4.serve.metrics import Metrics

CHAT = "/v1/chat/completions"


class Gate:
    """Middleware that refuses wrong keys before a body is read, and bodies over the limit before they are complete."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_bytes: int, api_key: str):
        self.app = app
        self.metrics = metrics
        self.max_bytes = max_bytes
        self.api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status, read = time.perf_counter(), 500, 0
        headers = dict(scope["headers"])

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if max(read, int(headers.get(b"content-length", 0))) > self.max_bytes:
                raise ApiError(413, f"The request is larger than {self.max_bytes} bytes.", code="request_too_large")
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if scope["path"].startswith("/v1/") and not self._may_enter(headers):
                await _STRANGER.response()(scope, receive, noted)
            else:
                await self.app(scope, bounded, noted)
        finally:
            if (scope["method"], scope["path"]) == ("POST", CHAT):
                self.metrics.note_request(status, begun)

    def _may_enter(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        own = self.api_key.encode()
        return not own or (kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), own))


_STRANGER = ApiError(
    401,
    "The API key is missing or wrong. Send the server's as 'Authorization: Bearer KEY'.",
    code="invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)
