"""A request of a stranger is read to its first error, and no further."""

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import ValidationError

from minigpt4.serve.api.messages import MAX_PARTS
from minigpt4.serve.api.protocol import MAX_FIELDS, ChatRequest

HELLO = {"role": "user", "content": "hello"}
WORD = {"type": "text", "text": "a"}
MANY = 5_000


def errors_of(**request) -> list[dict]:
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate({"model": "tiny", "messages": [HELLO], **request})
    return error.value.errors()


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [1] * MANY},
        {"messages": [{}] * MANY},
        {"messages": [{"role": "user", "content": [WORD] * (MAX_PARTS + 1)}]},
        {"messages": [{"role": "user", "content": [{"a": 1}] * MAX_PARTS}] * 9},
        {"messages": [{"role": "system", "content": [1] * MAX_PARTS}] * 9},
        {"stop": [1] * MANY},
        {"stop": ["a" * 10**6]},
        {"tools": [1] * MANY},
        {"modalities": [1] * MANY},
        {f"key{i}": 1 for i in range(MAX_FIELDS + 1)},
        {"messages": [HELLO | {f"key{i}": 1 for i in range(MAX_FIELDS + 1)}]},
    ],
    ids=lambda value: next(iter(value)),
)
def test_of_many_errors_the_first_is_reported(request_):
    assert len(errors_of(**request_)) <= 2  # two where one of two types would do


def test_large_requests_are_good_ones():
    messages = [HELLO] * 999 + [{"role": "user", "content": [WORD] * MAX_PARTS}]
    assert len(ChatRequest.model_validate({"model": "tiny", "messages": messages}).messages) == 1000


def test_each_of_openais_fields_is_decided_about():
    known = {*ChatRequest.model_fields, *ChatRequest.IGNORED}
    assert known >= CompletionCreateParamsStreaming.__annotations__.keys()
    assert not ChatRequest.model_fields.keys() & set(ChatRequest.IGNORED)


def test_the_document_tells_what_is_ignored():
    schema = ChatRequest.model_json_schema()
    assert schema["additionalProperties"] is False
    for name in ChatRequest.IGNORED:
        assert schema["properties"][name] == {"description": "without effect"}
    assert schema["properties"]["tools"]["enum"] == [None, [], "none", "auto"]


def test_unknown_fields_are_refused_and_ignored_ones_hold_anything():
    (error,) = errors_of(reasoning_efort="low")
    assert (error["type"], error["loc"]) == ("extra_forbidden", ("reasoning_efort",))
    for value in (None, 5, "low", [1], {"a": {"b": [None]}}):
        ChatRequest.model_validate({"model": "tiny", "messages": [HELLO]} | dict.fromkeys(ChatRequest.IGNORED, value))
