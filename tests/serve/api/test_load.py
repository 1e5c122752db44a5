"""The API when many ask, when too many do, and when one leaves."""

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace

import httpx
import openai
import pytest
import torch
from PIL import Image

from minigpt4.conversation.conversation import Conversation, Turn, spaced
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Decoding, Request
from minigpt4.serve import middleware
from minigpt4.serve.api.batching import QueuedRequest
from minigpt4.serve.api.service import Limits, Service
from minigpt4.serve.errors import ApiError
from tests.serve.asking import NAME, SCENES, client_of, running, user
from tests.waiting import LIMIT, wait_for

QUESTIONS = ("Describe this image in detail.", "How many digits are there?", "Which digit is on the left?", "hello")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On busy cores PyTorch's threads wait for each other, for many times as long as they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def single_answer(engine: Engine, number: int) -> str:
    """What the model says to client `number` when nobody else is there."""
    shown = [SCENES[number % 4]] if number % 5 else []
    pictures = [engine.processor(Image.open(scene).convert("RGB")) for scene in shown]
    asked = Conversation([Turn(spaced([*pictures, QUESTIONS[number // 4 % 4]]))])
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0} if number % 3 == 0 else {}
    limit = 9 if number % 7 == 0 else 300
    (answer,) = engine.answer([Request(asked, limit, Decoding(**sampling), seed=number)])
    return answer


def ask(client, number: int) -> str:
    shown = [SCENES[number % 4]] if number % 5 else []
    request = {
        "model": NAME,
        "messages": [user(*shown, QUESTIONS[number // 4 % 4])],
        "temperature": 1 if number % 3 == 0 else 0,
        "seed": number,
        "max_tokens": 9 if number % 7 == 0 else 300,
    }
    if number % 2:
        return client.chat.completions.create(**request).choices[0].message.content
    chunks = client.chat.completions.create(stream=True, **request)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.mark.slow
def test_32_clients_at_once_get_what_each_would_get_alone(tiny):
    service = Service(tiny, NAME, Limits(max_batch=8, queue=32))
    with running(service) as url, ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(partial(ask, client_of(url)), range(32)))
    assert answers == [single_answer(tiny, number) for number in range(32)]
    assert len(set(answers)) > 8
    batches = service.metrics.registry.get_sample_value("minigpt4_batch_size_count")
    assert batches < 16  # they did share


@pytest.fixture
def go() -> threading.Event:
    """Until it is set, answers of the slow model stop after 20 tokens."""
    return threading.Event()


@pytest.fixture
def slow(parity_engine, monkeypatch, go):
    """A model that talks to no end; see `go`."""
    count = QueuedRequest.count

    def slowly(self, tokens):
        count(self, tokens)
        while self.new_tokens == 20 and not (go.is_set() or self.request.interrupt.wait(0.01)):
            pass

    monkeypatch.setattr(QueuedRequest, "count", slowly)
    parity_engine.stop_ids = []
    monkeypatch.setattr(parity_engine.model.llm.generation_config, "eos_token_id", None)
    return parity_engine


REQUEST = {"model": NAME, "messages": [{"role": "user", "content": "a dog"}], "max_tokens": 400, "temperature": 0}


def talks(service: Service) -> bool:
    return any(ask.new_tokens for ask in service.batcher.at_work)


def idle(service: Service) -> bool:
    return not service.batcher.waiting and not service.batcher.at_work


@contextmanager
def asking(url: str, **more) -> Iterator[socket.socket]:
    """A client that has asked, and leaves at the end."""
    body = httpx.Request("POST", url, json=REQUEST | more).content
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(url) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield connection


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(slow, stream):
    service = Service(slow, NAME, Limits())
    with running(service) as url:
        with asking(url, stream=stream) as client:
            wait_for(lambda: talks(service))
            if stream:
                assert client.recv(15) == b"HTTP/1.1 200 OK"
        wait_for(lambda: idle(service))
        value = service.metrics.registry.get_sample_value
        wait_for(lambda: value("minigpt4_tokens_total", {"kind": "completion"}) is not None)
        assert value("minigpt4_tokens_total", {"kind": "completion"}) < 400
        if not stream:
            wait_for(lambda: value("minigpt4_requests_total", {"status": "499"}) == 1)


@pytest.mark.slow
def test_others_of_the_batch_continue(slow, go, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.api.batching.GATHER_SECONDS", LIMIT)
    service = Service(slow, NAME, Limits(max_batch=2))
    with running(service) as url, ThreadPoolExecutor(1) as others:
        stays = others.submit(client_of(url).chat.completions.create, **REQUEST | {"max_tokens": 30})
        with asking(url):
            wait_for(lambda: len(service.batcher.at_work) == 2)
        wait_for(lambda: any(ask.gone for ask in service.batcher.at_work))
        go.set()
        assert stays.result().usage.completion_tokens == 30
        wait_for(lambda: idle(service))


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_again(slow, go):
    service = Service(slow, NAME, Limits(max_batch=1, queue=2))
    with running(service) as url, ThreadPoolExecutor(3) as others:
        client = client_of(url)
        first = [others.submit(client.chat.completions.create, **REQUEST | {"max_tokens": 50}) for _ in range(1)]
        wait_for(lambda: len(service.batcher.at_work) == 1)
        first += [others.submit(client.chat.completions.create, **REQUEST | {"max_tokens": 5}) for _ in range(2)]
        wait_for(lambda: len(service.batcher.waiting) == 2)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match=r"The queue is full. Try again in \d+ s.") as error:
                client.chat.completions.create(**REQUEST, stream=stream)
            assert int(error.value.response.headers["retry-after"]) >= 1
            assert error.value.code == "rate_limit_exceeded"
        go.set()
        assert [answer.result().usage.completion_tokens for answer in first] == [50, 5, 5]
        client.chat.completions.create(**REQUEST | {"max_tokens": 1})  # there is room again


@pytest.mark.slow
def test_who_leaves_the_queue_makes_room(slow, go):
    service = Service(slow, NAME, Limits(max_batch=1, queue=1))
    with running(service) as url, ThreadPoolExecutor(1) as others:
        first = others.submit(client_of(url).chat.completions.create, **REQUEST | {"max_tokens": 50})
        wait_for(lambda: service.batcher.at_work)
        with asking(url):
            wait_for(lambda: service.batcher.waiting)
        wait_for(lambda: not service.batcher.waiting)
        assert not first.done()
        go.set()
        assert first.result().usage.completion_tokens == 50


def half_sent(url: str, later: ExitStack) -> socket.socket:
    """A request of which half has arrived."""
    connection = later.enter_context(connect(url))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b"[" * 50_000)
    return connection


@pytest.mark.slow
def test_only_so_many_requests_are_read_at_once(tiny):
    service = Service(tiny, NAME, Limits(max_batch=1, queue=1))
    with running(service) as url, ExitStack() as later:
        clients = [half_sent(url, later) for _ in range(service.limits.max_requests + 1)]
        ready, *_ = select.select(clients, [], [], LIMIT)
        assert [client.recv(99).partition(b"\r\n")[0] for client in ready] == [b"HTTP/1.1 429 Too Many Requests"]
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/v1/models").status_code == 200
        with pytest.raises(openai.RateLimitError, match="The queue is full") as error:
            client_of(url).chat.completions.create(**REQUEST)
        assert error.value.response.headers["retry-after"] == "1"
        clients[0].close()  # leaves while it sends
        value = service.metrics.registry.get_sample_value
        wait_for(lambda: value("minigpt4_requests_total", {"status": "499"}) == 1)
        client_of(url).chat.completions.create(**REQUEST | {"max_tokens": 1})
        assert value("minigpt4_requests_total", {"status": "400"}) is None


@pytest.mark.slow
def test_a_request_must_arrive_in_time(tiny, monkeypatch):
    monkeypatch.setattr(middleware, "REQUEST_TIMEOUT", 0.5)
    service = Service(tiny, NAME, Limits())
    with running(service) as url, ExitStack() as later:
        client = half_sent(url, later)
        client.sendall(b"[")
        assert client.recv(99).startswith(b"HTTP/1.1 408 ")


def test_an_answer_may_take_longer_than_its_request_may(monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=0)
    monkeypatch.setattr(middleware, "time", clock)
    arrives = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])
    received = []

    async def answer(scope, receive, send):
        received.append(await receive())
        clock.now += 2 * middleware.REQUEST_TIMEOUT
        received.append(await receive())

    async def receive():
        return next(arrives)

    scope = {"type": "http", "headers": []}
    asyncio.run(middleware.BodyLimit(answer, max_bytes=99)(scope, receive, None))
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]


def test_an_upload_has_time_by_its_size(monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=0)
    monkeypatch.setattr(middleware, "time", clock)
    received = []

    async def take(scope, receive, send):
        while True:
            received.append(await receive())

    async def receive():
        clock.now += 9 * middleware.REQUEST_TIMEOUT
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"a", "more_body": True}

    upload = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    limited = middleware.BodyLimit(take, max_bytes=100_000_000)
    with pytest.raises(ApiError, match="The request took more than 1060 s to arrive"):
        asyncio.run(limited(upload, receive, None))
    assert len(received) == 2


@pytest.mark.slow
def test_the_end_of_the_server_ends_the_answers(slow):
    service = Service(slow, NAME, Limits())
    with ExitStack() as later:  # the client stays
        with running(service) as url:
            later.enter_context(asking(url, stream=True))
            wait_for(lambda: talks(service))
        assert not service.batcher.alive
    assert service.metrics.registry.get_sample_value("minigpt4_tokens_total", {"kind": "completion"}) < 400


@pytest.mark.slow
def test_health_knows_when_nobody_answers(tiny):
    service = Service(tiny, NAME, Limits())
    with running(service) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        service.batcher.close()
        answer = httpx.get(f"{url}/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
