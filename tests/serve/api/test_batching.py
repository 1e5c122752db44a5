"""The one thread that owns the model: what it tells of an answer is what `generate` returns, however it is batched."""

import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minigpt4.inference.generation import Answer

from minigpt4.serve.api.batching import Ask, Batcher, QueueFullError, Sampling
from minigpt4.serve.api.metrics import Metrics
from tests.waiting import LIMIT

LOOSE = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
GREEDY = Sampling()
WARM = Sampling(True, 1.5)


class Asked:
    """An ask and what is told of it."""

    def __init__(self, model, prompt="a dog", max_tokens=8, sampling=GREEDY, **more):
        self.told: list[str | Answer] = []
        self.ended = threading.Event()
        self.ask = Ask(model, prompt, None, len(model.layout(prompt)), max_tokens, sampling, seed=5, **more)
        self.ask.tell = self.hear

    def hear(self, what: str | Answer) -> None:
        self.told.append(what)
        if isinstance(what, Answer):
            self.ended.set()

    @property
    def answer(self) -> Answer:
        assert self.ended.wait(LIMIT)
        return self.told[-1]


@pytest.fixture
def batcher(parity_model):
    batchers = []

    def make(**limits) -> Batcher:
        batchers.append(Batcher(parity_model, Metrics(), **limits))
        return batchers[-1]

    yield make
    for own in batchers:
        own.close()


@pytest.fixture
def batches(parity_model, monkeypatch) -> list[list[str]]:
    """The prompts of each batch."""
    seen, generate = [], parity_model.generate

    def noted(images, texts, **options):
        seen.append(list(texts))
        return generate(images, texts, **options)

    monkeypatch.setattr(parity_model, "generate", noted)
    return seen


@LOOSE
@given(
    rows=st.lists(st.tuples(st.text("abc dog 7.#é", max_size=30), st.integers(1, 12)), min_size=1, max_size=4),
    sampling=st.sampled_from([GREEDY, WARM]),
    stream=st.booleans(),
)
def test_what_is_told_is_what_generate_returns(rows, sampling, stream, parity_model, batcher):
    own = batcher()
    own.start()
    asked = [Asked(parity_model, text, limit, sampling, stream=stream) for text, limit in rows]
    own.submit([each.ask for each in asked])
    for (text, limit), each in zip(rows, asked, strict=True):
        alone = parity_model.generate(None, [text], max_new_tokens=limit, seed=5, **sampling._asdict())[0]
        facts = [(a, a.finish, a.prompt_tokens, a.new_tokens) for a in (each.answer, alone)]
        assert facts[0] == facts[1]
        assert "".join(each.told[:-1]) == (alone if stream else "")


@LOOSE
@given(data=st.data())
def test_own_stops(data, parity_model, batcher):
    whole = parity_model.generate(None, ["hello"], max_new_tokens=20, min_new_tokens=20)[0]
    at = data.draw(st.integers(0, len(whole) - 1))
    stops = (whole[at : at + data.draw(st.integers(1, 5))],)
    each = Asked(parity_model, "hello", 20, stops=stops, stream=data.draw(st.booleans()))
    own = batcher()
    own.start()
    own.submit([each.ask])
    assert each.answer == parity_model.cut(whole, stops)
    if each.ask.stream:
        assert "".join(each.told[:-1]) == each.answer
    if stops[0] in whole:
        assert each.answer.finish == "stop"


def test_a_short_answer_does_not_wait_for_a_long_one(parity_model, batcher, monkeypatch):
    put, go = Ask.put, threading.Event()
    monkeypatch.setattr(Ask, "put", lambda self, value: put(self, value) or (self.new_tokens == 10 and go.wait(LIMIT)))
    monkeypatch.setattr(parity_model, "stop_ids", [])
    own, short, long = batcher(), Asked(parity_model, max_tokens=2), Asked(parity_model, max_tokens=100)
    own.start()
    own.submit([short.ask, long.ask])
    assert short.answer.new_tokens == 2
    assert not long.ended.is_set()
    go.set()
    assert long.answer.new_tokens > 10


def test_batches_are_of_one_sampling_and_in_order(parity_model, batcher, batches):
    own = batcher(max_batch=2)
    kinds = [GREEDY, WARM, GREEDY, GREEDY, WARM, Sampling(True, 0.5)]
    asked = [Asked(parity_model, str(number), 2, kind) for number, kind in enumerate(kinds)]
    own.submit([each.ask for each in asked])
    own.start()
    assert all(each.answer.finish for each in asked)
    assert batches == [["0", "2"], ["1", "4"], ["3"], ["5"]]


def test_who_asks_soon_after_is_waited_for(parity_model, batcher, batches, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.api.batching._GATHER", 2 * LIMIT)  # a full batch waits for nobody
    own, asked = batcher(max_batch=3), [Asked(parity_model, str(number)) for number in range(3)]
    own.start()
    for each in asked:
        own.submit([each.ask])
    assert all(each.answer.finish for each in asked)
    assert batches == [["0", "1", "2"]]


def test_the_queue_takes_all_or_none(parity_model, batcher):
    own, asked = batcher(queue=3), [Asked(parity_model).ask for _ in range(4)]
    own.submit(asked[:2])
    with pytest.raises(QueueFullError) as error:
        own.submit(asked[2:])
    assert error.value.retry_after >= 1
    own.submit(asked[2:3])
    own.cancel(asked[:1])
    own.submit(asked[3:])
    own.start()


def test_who_has_left_is_not_answered(parity_model, batcher, batches):
    own, asked = batcher(), [Asked(parity_model, str(number)) for number in range(3)]
    own.submit([each.ask for each in asked])
    own.cancel([asked[1].ask])
    own.start()
    assert asked[0].answer.finish and asked[2].answer.finish
    assert batches == [["0", "2"]]
    assert not asked[1].told


def test_all_of_a_gathered_batch_may_leave(parity_model, batcher, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.api.batching._GATHER", 0.2)
    own, gone, stays = batcher(), Asked(parity_model), Asked(parity_model)
    own.start()
    own.submit([gone.ask])
    own.cancel([gone.ask])
    time.sleep(0.4)
    own.submit([stays.ask])
    assert stays.answer.finish


def test_a_row_that_fails_late_leaves_the_others_as_they_are(parity_model, batcher, monkeypatch):
    """The batch is made again one by one; nothing is told twice."""
    bad = Asked(parity_model, "hello", 12, stream=True)
    good = Asked(parity_model, "a dog", 12, stream=True)
    short = Asked(parity_model, "7", 2, stream=True)
    follow = Ask._follow

    def fails(self):
        if self is bad.ask and len(self._tokens) == 5:
            raise RuntimeError("out of memory")
        follow(self)

    monkeypatch.setattr(Ask, "_follow", fails)
    own = batcher()
    own.start()
    own.submit([bad.ask, good.ask, short.ask])
    assert str(bad.answer.error) == "out of memory"
    for each in (good, short):
        limit = each.ask.max_tokens
        assert each.answer == parity_model.generate(None, [each.ask.prompt], max_new_tokens=limit)[0]
        assert each.ask.new_tokens == limit  # also of the one that had its answer when the batch failed
        assert "".join(each.told[:-1]) == each.answer
    assert sum(isinstance(what, Answer) for each in (bad, good, short) for what in each.told) == 3


def test_the_thread_outlives_what_nobody_foresaw(parity_model, batcher, monkeypatch):
    own, asked = batcher(), [Asked(parity_model) for _ in range(2)]
    own.start()
    with monkeypatch.context() as broken:
        broken.setattr(parity_model, "generate", lambda *_, **__: 1 / 0)
        own.submit([asked[0].ask])
        assert isinstance(asked[0].answer.error, ZeroDivisionError)
    own.submit([asked[1].ask])
    assert asked[1].answer.error is None


def test_nobody_waits_for_an_end_that_no_token_shows(parity_model, batcher, monkeypatch):
    """An LLM may have an end of its own, which its settings do not name."""
    monkeypatch.setattr(parity_model, "generate", lambda *_, **__: [Answer("a brown dog")])
    own, each = batcher(), Asked(parity_model, stream=True)
    own.start()
    own.submit([each.ask])
    assert (each.answer, each.answer.finish) == ("a brown dog", "stop")
    assert each.told[:-1] == ["a brown dog"]


def test_close_ends_what_is_under_way(parity_model, batcher, monkeypatch):
    monkeypatch.setattr(parity_model, "stop_ids", [])
    put, begun = Ask.put, threading.Event()
    monkeypatch.setattr(Ask, "put", lambda self, value: (begun.set(), time.sleep(0.01), put(self, value)))
    own, each = batcher(), Asked(parity_model, max_tokens=1000)
    own.start()
    own.submit([each.ask])
    assert begun.wait(LIMIT)
    own.close()
    assert not own.alive
    assert each.ask.new_tokens < 1000


def test_pictures_reach_the_model(parity_model, batcher):
    prompt = "<Img><ImageHere></Img> a dog"
    torch.manual_seed(0)
    picture = torch.randn(1, 3, 56, 56)
    asked = [Asked(parity_model, prompt, 12), Asked(parity_model, "a dog", 12)]
    asked[0].ask.images = picture
    own = batcher()
    own.submit([each.ask for each in asked])
    own.start()
    assert asked[0].answer == parity_model.generate(picture, [prompt], max_new_tokens=12)[0]
    assert asked[1].answer == parity_model.generate(None, ["a dog"], max_new_tokens=12)[0]
