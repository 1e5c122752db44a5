"""The one thread that owns the model: what it tells of an answer is what the engine returns, however it is batched."""

import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt4.inference.decoding import Decoding
from minigpt4.inference.endings import cut
from minigpt4.inference.engine import Engine
from minigpt4.inference.requests import Answer, Request
from minigpt4.serve.api.batching import Batcher, QueuedRequest, QueueFullError
from minigpt4.serve.api.metrics import Metrics
from tests.waiting import LIMIT

LOOSE = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GREEDY = Decoding()
WARM = Decoding(do_sample=True, temperature=1.5)


class Asked:
    """A request and what is reported of it."""

    def __init__(self, engine: Engine, *prompt, max_tokens=8, decoding=GREEDY, stops=(), stream=False):
        self.received: list[str | Answer] = []
        self.ended = threading.Event()
        self.prompt = prompt or ("a dog",)
        request = Request(self.prompt, max_tokens, decoding, 5, stops)
        self.ask = QueuedRequest(request, len(engine.prompter.layout(self.prompt)), stream=stream, send=self.hear)

    def hear(self, what: str | Answer) -> None:
        self.received.append(what)
        if isinstance(what, Answer):
            self.ended.set()

    @property
    def answer(self) -> Answer:
        assert self.ended.wait(LIMIT)
        return self.received[-1]


@pytest.fixture
def batcher(parity_engine):
    batchers = []

    def make(**limits) -> Batcher:
        batchers.append(Batcher(parity_engine, Metrics(), **limits))
        return batchers[-1]

    yield make
    for own in batchers:
        own.close()


@pytest.fixture
def batches(parity_engine) -> list[list[str]]:
    """The prompts of each batch."""
    seen, answer = [], parity_engine.answer

    def noted(requests):
        seen.append([parity_engine.prompter.text(request.prompt) for request in requests])
        return answer(requests)

    parity_engine.answer = noted
    return seen


def alone(engine: Engine, *prompt, max_tokens=12, decoding=GREEDY) -> Answer:
    (answer,) = engine.answer([Request(prompt, max_tokens, decoding, 5)])
    return answer


@pytest.mark.slow
@LOOSE
@given(
    rows=st.lists(st.tuples(st.text("abc dog 7.#é", max_size=30), st.integers(1, 12)), min_size=1, max_size=4),
    decoding=st.sampled_from([GREEDY, WARM]),
    stream=st.booleans(),
)
def test_what_is_reported_is_what_the_engine_returns(rows, decoding, stream, parity_engine, batcher):
    own = batcher()
    own.start()
    asked = [Asked(parity_engine, text, max_tokens=n, decoding=decoding, stream=stream) for text, n in rows]
    own.submit([each.ask for each in asked])
    for (text, limit), each in zip(rows, asked, strict=True):
        expected = alone(parity_engine, text, max_tokens=limit, decoding=decoding)
        facts = [(a, a.finish, a.prompt_tokens, a.new_tokens) for a in (each.answer, expected)]
        assert facts[0] == facts[1]
        assert (each.ask.prompt_tokens, each.ask.new_tokens) == facts[0][2:]
        assert "".join(each.received[:-1]) == (expected if stream else "")


@pytest.mark.slow
@LOOSE
@given(data=st.data())
def test_own_stops(data, parity_engine, batcher):
    whole = parity_engine.generate(None, ["hello"], max_new_tokens=20, min_new_tokens=20)[0]
    at = data.draw(st.integers(0, len(whole) - 1))
    stops = (whole[at : at + data.draw(st.integers(1, 5))],)
    each = Asked(parity_engine, "hello", max_tokens=20, stops=stops, stream=data.draw(st.booleans()))
    own = batcher()
    own.start()
    own.submit([each.ask])
    assert each.answer == cut(whole, (*parity_engine.prompter.template.stop, *stops))
    if each.ask.stream:
        assert "".join(each.received[:-1]) == each.answer
    if stops[0] in whole:
        assert each.answer.finish == "stop"


@pytest.mark.slow
def test_a_short_answer_does_not_wait_for_a_long_one(parity_engine, batcher, monkeypatch):
    count, go = QueuedRequest.count, threading.Event()
    monkeypatch.setattr(
        QueuedRequest, "count", lambda self, tokens: count(self, tokens) or (tokens == 10 and go.wait(LIMIT))
    )
    parity_engine.stop_ids = []
    own, short, long = batcher(), Asked(parity_engine, max_tokens=2), Asked(parity_engine, max_tokens=100)
    own.start()
    own.submit([short.ask, long.ask])
    assert short.answer.new_tokens == 2
    assert not long.ended.is_set()
    go.set()
    assert long.answer.new_tokens > 10


def test_batches_are_of_one_sampling_and_in_order(parity_engine, batcher, batches):
    own = batcher(max_batch=2)
    kinds = [GREEDY, WARM, GREEDY, GREEDY, WARM, Decoding(do_sample=True, temperature=0.5)]
    asked = [Asked(parity_engine, str(number), max_tokens=2, decoding=kind) for number, kind in enumerate(kinds)]
    own.submit([each.ask for each in asked])
    own.start()
    assert all(each.answer.finish for each in asked)
    assert batches == [["0", "2"], ["1", "4"], ["3"], ["5"]]


def test_who_asks_soon_after_is_waited_for(parity_engine, batcher, batches, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.api.batching.GATHER_SECONDS", 2 * LIMIT)  # a full batch waits for nobody
    own, asked = batcher(max_batch=3), [Asked(parity_engine, str(number)) for number in range(3)]
    own.start()
    for each in asked:
        own.submit([each.ask])
    assert all(each.answer.finish for each in asked)
    assert batches == [["0", "1", "2"]]


def test_the_queue_takes_all_or_none(parity_engine, batcher):
    own, asked = batcher(queue=3), [Asked(parity_engine).ask for _ in range(4)]
    own.submit(asked[:2])
    with pytest.raises(QueueFullError) as error:
        own.submit(asked[2:])
    assert int(error.value.headers["Retry-After"]) >= 1
    own.submit(asked[2:3])
    own.cancel(asked[:1])
    own.submit(asked[3:])
    own.start()


def test_who_has_left_is_not_answered(parity_engine, batcher, batches):
    own, asked = batcher(), [Asked(parity_engine, str(number)) for number in range(3)]
    own.submit([each.ask for each in asked])
    own.cancel([asked[1].ask])
    own.start()
    assert asked[0].answer.finish and asked[2].answer.finish
    assert batches == [["0", "2"]]
    assert not asked[1].received


@pytest.mark.slow
def test_all_of_a_gathered_batch_may_leave(parity_engine, batcher, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.api.batching.GATHER_SECONDS", 0.2)
    own, gone, stays = batcher(), Asked(parity_engine), Asked(parity_engine)
    own.start()
    own.submit([gone.ask])
    own.cancel([gone.ask])
    time.sleep(0.4)
    own.submit([stays.ask])
    assert stays.answer.finish


def test_a_row_that_fails_late_leaves_the_others_as_they_are(parity_engine, batcher, monkeypatch):
    """The batch is made again one by one; nothing is reported twice."""
    bad = Asked(parity_engine, "hello", max_tokens=12, stream=True)
    good = Asked(parity_engine, "a dog", max_tokens=12, stream=True)
    short = Asked(parity_engine, "7", max_tokens=2, stream=True)
    count = bad.ask.request.on_token

    def fails(tokens):
        if tokens == 5:
            raise RuntimeError("out of memory")
        count(tokens)

    bad.ask.request.on_token = fails
    own = batcher()
    own.start()
    own.submit([bad.ask, good.ask, short.ask])
    assert str(bad.answer.error) == "out of memory"
    for each in (good, short):
        limit = each.ask.request.max_new_tokens
        assert each.answer == alone(parity_engine, *each.prompt, max_tokens=limit)
        assert each.ask.new_tokens == limit  # also of the one that had its answer when the batch failed
        assert "".join(each.received[:-1]) == each.answer
    assert sum(isinstance(what, Answer) for each in (bad, good, short) for what in each.received) == 3


def test_the_thread_outlives_what_nobody_foresaw(parity_engine, batcher, monkeypatch):
    own, asked = batcher(), [Asked(parity_engine) for _ in range(2)]
    own.start()
    with monkeypatch.context() as broken:
        broken.setattr(parity_engine, "answer", lambda _: 1 / 0)
        own.submit([asked[0].ask])
        assert isinstance(asked[0].answer.error, ZeroDivisionError)
    own.submit([asked[1].ask])
    assert asked[1].answer.error is None


def test_nobody_waits_for_an_end_that_no_token_shows(parity_engine, batcher, monkeypatch):
    """An LLM may have an end of its own, which its settings do not name."""
    expected, generate = alone(parity_engine, "a dog", max_tokens=2), parity_engine.model.llm.generate

    def ends_early(generation_config, **options):
        generation_config.max_new_tokens = 2
        return generate(generation_config=generation_config, **options)

    monkeypatch.setattr(parity_engine.model.llm, "generate", ends_early)
    own, each = batcher(), Asked(parity_engine, stream=True)
    own.start()
    own.submit([each.ask])
    assert (each.answer, each.answer.finish, each.answer.new_tokens) == (expected, "stop", 2)
    assert "".join(each.received[:-1]) == expected


def test_close_ends_what_is_under_way(parity_engine, batcher, monkeypatch):
    parity_engine.stop_ids = []
    count, started = QueuedRequest.count, threading.Event()
    monkeypatch.setattr(
        QueuedRequest, "count", lambda self, tokens: (started.set(), time.sleep(0.01), count(self, tokens))
    )
    own, each = batcher(), Asked(parity_engine, max_tokens=1000)
    own.start()
    own.submit([each.ask])
    assert started.wait(LIMIT)
    own.close()
    assert not own.alive
    assert each.ask.new_tokens < 1000


def test_pictures_reach_the_model(parity_engine, batcher):
    torch.manual_seed(0)
    prompt = ("<Img>", torch.randn(3, 56, 56), "</Img> a dog")
    asked = [Asked(parity_engine, *prompt, max_tokens=12), Asked(parity_engine, "a dog", max_tokens=12)]
    own = batcher()
    own.submit([each.ask for each in asked])
    own.start()
    assert asked[0].answer == alone(parity_engine, *prompt)
    assert asked[1].answer == alone(parity_engine, "a dog")
