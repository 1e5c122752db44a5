"""Our models in lmms-eval. Its classes are stood in for: it needs an environment of its own (docs/evaluation.md)."""

import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.inference.decoding import Decoding
from minigpt4.inference.requests import Request
from tests.conftest import parity_processor


class Base:
    """What lmms-eval's own base class is to its models."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    rank = property(lambda self: self._rank)


@dataclass
class Manifest:
    model_id: str
    chat_class_path: str


@pytest.fixture
def lmms(monkeypatch):
    for name, held in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": Manifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    own = importlib.import_module("minigpt4.evaluation.lmms_eval")
    yield importlib.reload(own)
    monkeypatch.undo()
    importlib.reload(own)


def request(doc, **settings):
    return SimpleNamespace(args=("context", lambda doc: doc, settings, doc, "task", "test"))


def test_the_entry_point_names_a_model_that_answers_chats(lmms):
    (found,) = entry_points(group="lmms_eval.models", name="minigpt4")
    assert found.value == "minigpt4.evaluation.lmms_eval:manifest"
    manifest = lmms.manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    own = getattr(importlib.import_module(module), name)
    assert manifest.model_id == "minigpt4" and issubclass(own, Base) and not own.is_simple


def test_requests_get_what_the_engine_answers(lmms, parity_engine, tmp_path):
    picture = Image.new("RGB", (20, 16), (90, 0, 0))
    picture.save(tmp_path / "a.png")
    pixels = parity_processor(picture)
    words = {"type": "text", "text": "What is this?"}
    docs = {
        "one": [{"role": "user", "content": [{"type": "image", "url": picture}, words]}],
        "file": [{"role": "user", "content": [{"type": "image", "url": str(tmp_path / "a.png")}, words]}],
        "words": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [words]}],
        "turns": [
            {"role": "user", "content": [{"type": "image", "url": picture}, words]},
            {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
            {"role": "user", "content": "Why?"},
        ],
    }
    model = lmms.MiniGPT4(engine=parity_engine, batch_size="3")
    model.task_dict = {"task": {"test": docs}}
    asked = [request(name, max_new_tokens=6) for name in docs] + [request("one", max_new_tokens=2, until=["\n"])]
    said = model.generate_until(asked)
    one = Turn([pixels, " ", "What is this?"])
    expected = [
        Conversation([one]),
        Conversation([one]),
        Conversation([Turn(["What is this?"])], system="Be brief."),
        Conversation([Turn(one.question, "A dog."), Turn(["Why?"])]),
    ]
    answers = [parity_engine.answer([Request(own, max_new_tokens=6)])[0] for own in expected]
    short = parity_engine.answer([Request(expected[0], max_new_tokens=2, stops=("\n",))])[0]
    assert said == [*answers, short] and len(set(said)) > 2


def test_settings_of_tasks(lmms):
    assert lmms.decoding_of({}) == {"max_new_tokens": 128, "decoding": Decoding()}
    greedy = {"temperature": 0, "do_sample": False, "top_p": None, "num_beams": 3, "max_new_tokens": 16}
    assert lmms.decoding_of(greedy) == {"max_new_tokens": 16, "decoding": Decoding(num_beams=3)}
    sampled = lmms.decoding_of({"do_sample": True, "temperature": 0.7, "top_p": 0.9})["decoding"]
    assert sampled == Decoding(do_sample=True, temperature=0.7, top_p=0.9)


def test_what_it_does_not_do_is_said(lmms, parity_engine):
    model = lmms.MiniGPT4(engine=parity_engine)
    model.task_dict = {"task": {"test": {"a": [{"role": "user", "content": [{"type": "audio", "url": "x"}]}]}}}
    with pytest.raises(UserError, match="a message holds audio, which this model does not read"):
        model.generate_until([request("a")])
    with pytest.raises(NotImplementedError, match="choose the task's generate_until form"):
        model.loglikelihood([])
