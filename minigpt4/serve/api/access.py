"""In front of the API's routes: who may come in, and a note of each that asks for answers."""

import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt4.serve.api.batching import QueueFullError
from minigpt4.serve.api.metrics import Metrics
from minigpt4.serve.errors import ApiError

CHAT = "/v1/chat/completions"


class AccessControl:
    """Middleware that refuses early what would be of no use to read.

    That is, before its body is read, who has no key, and who asks for answers when `max_requests` of such requests
    are under way (those that still arrive among them).
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_requests: int, api_key: str):
        self.app = app
        self.metrics = metrics
        self.max_requests = max_requests
        self.api_key = api_key
        self._under_way = 0  # requests for answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500
        asks = (scope["method"], scope["path"]) == ("POST", CHAT)

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._under_way += asks
        try:
            if scope["path"].startswith("/v1/") and not self._authorized(dict(scope["headers"])):
                await _UNAUTHORIZED.response()(scope, receive, noted)
            elif asks and self._under_way > self.max_requests:
                await QueueFullError(1).response()(scope, receive, noted)
            else:
                await self.app(scope, receive, noted)
        finally:
            self._under_way -= asks
            if asks:
                self.metrics.note_request(status, started)

    def _authorized(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        own = self.api_key.encode()
        return not own or (kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), own))


_UNAUTHORIZED = ApiError(
    401,
    "The API key is missing or wrong. Send the server's as 'Authorization: Bearer KEY'.",
    code="invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)
