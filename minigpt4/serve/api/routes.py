"""An HTTP API that OpenAI's clients understand: chat completions with pictures, streamed and not."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from openai.types import CompletionUsage, Model
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from minigpt4.common.errors import UserError
from minigpt4.inference.boxes import in_pixels
from minigpt4.inference.requests import Answer
from minigpt4.serve.api.access import CHAT, AccessControl
from minigpt4.serve.api.batching import QueuedRequest
from minigpt4.serve.api.errors import as_api_error
from minigpt4.serve.api.protocol import AnswerChoice, ChatRequest, Completion, Health, Message, ModelList
from minigpt4.serve.api.service import Piece, Service
from minigpt4.serve.errors import ErrorAnswer
from minigpt4.serve.middleware import BodyLimit, KnownHosts

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request can't be served; the message says why and what to do."},
    "5XX": {"model": ErrorAnswer, "description": "The server failed."},
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}  # a chunk, or [DONE]
_EVENTS = {"text/event-stream": {"schema": _EVENT}}


def build_app(service: Service, api_key: str = "", hosts: Collection[str] = ("*",)) -> FastAPI:
    """Builds the API around a model. `hosts` are those that it may be asked for, see `KnownHosts`.

    `POST /v1/chat/completions`, `GET /v1/models` and `/v1/models/{model}` ask for the key, if there is one;
    `GET /health`, `/metrics` and `/openapi.json` do not.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        service.batcher.close()

    # the pages of docs_url would load scripts from elsewhere
    app = FastAPI(title="MiniGPT-4", lifespan=lifespan, docs_url=None, redoc_url=None)
    limits = service.limits
    app.add_middleware(BodyLimit, max_bytes=limits.max_bytes)
    app.add_middleware(AccessControl, metrics=service.metrics, max_requests=limits.max_requests, api_key=api_key)
    app.add_middleware(KnownHosts, hosts=hosts)  # the last is the first to be asked
    for kind in (HTTPException, RequestValidationError, UserError, Exception):
        app.add_exception_handler(kind, lambda _, error: as_api_error(error).response())
    # access was checked already: this is for the OpenAPI document
    key = [Security(HTTPBearer(auto_error=False))] if api_key else []
    app.include_router(_v1(service), dependencies=key, responses=_ERRORS)

    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> Health:
        """Whether the model can answer."""
        if service.batcher.alive:
            return Health(status="ok")
        return JSONResponse({"status": "failed"}, 503)  # type: ignore[return-value]

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _v1(service: Service) -> APIRouter:
    router = APIRouter()
    card = Model(id=service.name, object="model", created=int(time.time()), owned_by="minigpt4")

    @router.post(CHAT, response_model=Completion, responses={200: {"content": _EVENTS}})
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next answer in a conversation."""
        return await _unless_gone(request, _respond(service, body))

    @router.get("/v1/models", response_model_exclude_none=True)
    async def models() -> ModelList:
        """The one model that is here."""
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}", response_model_exclude_none=True)  # names of models can hold slashes
    async def model(model: str) -> Model:
        """The model, if it has this name."""
        service.require_model(model)
        return card

    return router


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Awaits work, but ends it when the client goes away."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(leaving())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else Response(status_code=499)  # which nobody reads, but is counted
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _respond(service: Service, body: ChatRequest) -> Response:
    items = await service.read(body)
    answers = service.answers(items)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": service.name,
    }
    if body.stream:
        first = await anext(answers)  # until then an error is a status of its own
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return _Events(_events(head, items, first, answers, usage), answers)
    done = {index: answer async for index, answer in answers if isinstance(answer, Answer)}
    choices = [
        AnswerChoice(
            index=index,
            message=Message(role="assistant", content=str(answer), refusal=None, **_boxes(answer, items[index])),
            logprobs=None,
            finish_reason=answer.finish,  # type: ignore[arg-type]
        )
        for index, answer in sorted(done.items())
    ]
    whole = Completion(**head, object="chat.completion", choices=choices, usage=_usage(items))
    return JSONResponse(whole.to_dict())


def _boxes(answer: Answer, item: QueuedRequest) -> dict[str, Any]:
    """Besides what OpenAI answers: the boxes of an answer that has some, in pixels of the last picture."""
    boxes = in_pixels(answer, item.size) if any(item.size) else []
    return {"boxes": boxes} if boxes else {}


def _usage(items: list[QueuedRequest]) -> CompletionUsage:
    """An image counts as its rows, and the prompt once however many answers it gets."""
    prompt, answers = items[0].prompt_tokens, sum(item.new_tokens for item in items)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=answers, total_tokens=prompt + answers)


class _Events(StreamingResponse):
    """Server-sent events; when they end, in whatever way, so do the answers."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], answers: AsyncIterator[Piece]):
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._answers: Any = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answers.aclose()


async def _events(
    head: dict[str, Any], items: list[QueuedRequest], first: Piece, answers: AsyncIterator[Piece], with_usage: bool
) -> AsyncIterator[str]:
    """The chunks of all choices as they come."""
    no_usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def event(choices: list[Choice], **usage: Any) -> str:
        return _event(ChatCompletionChunk(**head, object="chat.completion.chunk", choices=choices, **usage).to_dict())

    def chunk(index: int, delta: ChoiceDelta, finish: Any = None) -> str:
        return event([Choice(index=index, delta=delta, logprobs=None, finish_reason=finish)], **no_usage)

    def event_of(index: int, what: str | Answer) -> str:
        if isinstance(what, Answer):
            return chunk(index, ChoiceDelta(**_boxes(what, items[index])), what.finish)
        return chunk(index, ChoiceDelta(content=what))

    for index in range(len(items)):
        yield chunk(index, ChoiceDelta(role="assistant", content=""))
    yield event_of(*first)
    try:
        async for index, what in answers:
            yield event_of(index, what)
    except Exception as error:  # the status is sent: only an event can report it
        yield _event(as_api_error(error).body.model_dump())
        return
    if with_usage:
        yield event([], usage=_usage(items))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
