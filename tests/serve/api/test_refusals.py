"""What the API refuses, and how it says so: no traceback, no hang, an error as OpenAI's."""

import json
import struct
import zlib

import httpx
import openai
import pytest

from minigpt4.common.errors import UserError
from minigpt4.serve.api.service import Limits, Service
from tests.serve.asking import NAME, SCENES, client_of, image_part, running, user

GREEDY = {"model": NAME, "temperature": 0}
BEGINNING = {"role": "assistant", "content": "It is"}
FILE = {"type": "input_image", "file_id": "file-1", "image_url": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        ({"logprobs": True}, "logprobs", "is not supported: answers come without log probabilities"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "plain text"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "use repetition_penalty"),
        ({"presence_penalty": -0.5}, "presence_penalty", "use repetition_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "can't be weighted"),
        ({"modalities": ["audio"]}, "modalities", "answers in text"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "n", "65 is more than this server queues"),
        ({"n": "1"}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1"),
        ({"seed": 2**63}, "seed", "less than or equal"),
        ({"tmperature": 1}, "tmperature", "is unknown"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "is required"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages.0", "'tool'"),
        ({"messages": [user("a")], "continue_final_message": True}, "continue_final_message", "an answer begins"),
        ({"messages": [BEGINNING], "continue_final_message": False}, "continue_final_message", "is continued"),
        ({"messages": [BEGINNING], "add_generation_prompt": True}, "add_generation_prompt", "is continued"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "an answer begins"),
        ({"messages": [{"role": "user", "content": [FILE]}]}, "messages.0.content.0.file_id", "no files are kept"),
        ({"tool_choice": "required"}, "tool_choice", "calls no tools"),
        ({"moderation": {"model": "any"}}, "moderation", "nothing is moderated"),
        ({"web_search_options": {}}, "web_search_options", "nothing is searched"),
        ({"audio": {"voice": "any", "format": "wav"}}, "audio", "answers in text"),
        ({"top_k": 5}, "top_k", "50 likeliest tokens is drawn"),
        ({"top_k": -1}, "top_k", "50 likeliest tokens is drawn"),
        ({"min_p": 0.1}, "min_p", "use top_p"),
        ({"best_of": 2}, "best_of", "decoded in one way"),
        ({"ignore_eos": True}, "ignore_eos", "where the model ends it"),
        ({"min_tokens": 5}, "min_tokens", "where the model ends it"),
        ({"stop_token_ids": [2]}, "stop_token_ids", "where the model ends it"),
        ({"echo": True}, "echo", "nothing of the question"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "takes no arguments"),
        ({"mm_processor_kwargs": {"num_crops": 4}}, "mm_processor_kwargs", "takes no arguments"),
        ({"options": {"temperature": 0}}, "options", "beside the messages"),
        ({"messages": [user("a " * 5000)]}, "messages", "the model reads and answers 2048 at once"),
        ({"messages": [user("a " * 100_000)]}, "messages", "the model reads and answers 2048 at once"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_can_not_be_is_refused_with_a_reason(client, request_, param, words):
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.chat.completions.create(**{"model": NAME, "messages": [user("hello")]}, extra_body=request_)
    assert error.value.body.keys() == {"message", "type", "param", "code"}
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def bomb(side: int) -> bytes:
    """A large PNG in a few bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = block(b"IHDR", head) + block(b"IDAT", zlib.compress(bytes(10**6))) + block(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no picture", "can't be read as a picture"),
        (b"", "can't be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "can't be read as a picture"),  # starts Ghostscript
        (SCENES[0].read_bytes()[:900], "can't be read as a picture: image file is truncated"),
        (bomb(1001), "more than 1 megapixels"),
        (bomb(65535), "more than 1 megapixels"),
    ],
    ids=["text", "nothing", "eps", "half", "large", "bomb"],
)
def test_what_is_no_picture(client, data, words, tmp_path):
    (tmp_path / "file.png").write_bytes(data)
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(messages=[user(tmp_path / "file.png")], **GREEDY)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("data:image/png;base64,***", "data: URL can't be read"),
        ("data:image/png;base64,é", "data: URL can't be read"),
        ("data:image/png,abc", "is not a data: URL"),
        ("http://127.0.0.1/x.png", "fetches no others"),
        ("file:///etc/passwd", "fetches no others"),
        ("ftp:", "fetches no others"),
        ("", "can't be read as a picture"),
        ("picture.png", "is not a data: URL but 'picture.png'"),
        ("data:," + "a" * 9, "is not a data: URL"),
    ],
)
def test_what_is_no_data_url(client, address, words):
    messages = [{"role": "user", "content": [image_part(address)]}]
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(messages=messages, **GREEDY)


@pytest.mark.slow
def test_a_models_name_may_hold_slashes(tiny):
    with running(Service(tiny, "org/tiny", Limits())) as url:
        assert client_of(url).models.retrieve("org/tiny").id == "org/tiny"
        assert httpx.get(f"{url}/v1/models/org/tiny").json()["id"] == "org/tiny"


@pytest.mark.slow
def test_other_models_and_addresses(client, api_url):
    assert [card.id for card in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="The model 'gpt-7' is not here. Ask for 'tiny'") as error:
        client.chat.completions.create(messages=[user("hello")], model="gpt-7")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")
    assert httpx.get(f"{api_url}/v1/embeddings").json()["error"]["type"] == "invalid_request_error"
    wrong = httpx.get(f"{api_url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"5",
        b"\xff",
        b"[" * 15_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"model": "\\ud800", "messages": []}',
        b'{"model": "", "messages": [], "\\ud800": [[1]]}',
        b'{"model": "", "messages": [], "metadata": {"a": "\xed\xa0\x80"}}',
        b'{"metadata": ' + b'{"a":' * 900 + b"0" + b"}" * 901,
        b'{"temperature": NaN}',
    ],
    ids=["half", "number", "bytes", "deep", "long", "surrogate", "in a key", "in UTF-8", "less deep", "nan"],
)
def test_broken_bodies(api_url, body):
    answer = httpx.post(f"{api_url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_lone_surrogates_are_no_text(api_url):
    body = json.dumps({**GREEDY, "messages": [{"role": "user", "content": "\ud800"}]})  # as \\ud800
    answer = httpx.post(f"{api_url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_other_sites_pages_can_not_ask(api_url):
    """A browser sends text/plain to any site without asking that site first."""
    body = json.dumps({"messages": [user("hello")], **GREEDY})
    answer = httpx.post(f"{api_url}/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    assert "Send it with 'Content-Type: application/json'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["", "/v1", "/chat/completions"])
def test_where_there_is_nothing_it_says_where_the_api_is(api_url, path):
    answer = httpx.get(f"{api_url}{path}")
    assert answer.status_code == 404 and "The API is below /v1" in answer.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2_000_000, 40_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(api_url, chunked, size):
    body = json.dumps({"messages": [user("a" * size)], **GREEDY}).encode()
    content = (body[i : i + 10_000] for i in range(0, len(body), 10_000)) if chunked else body
    answer = httpx.post(f"{api_url}/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "The request is larger than 2000000 bytes."


@pytest.mark.slow
def test_a_key_is_asked_for(tiny):
    with running(Service(tiny, NAME, Limits()), api_key="secret") as url:
        assert [card.id for card in client_of(url, "secret").models.list()] == [NAME]
        for key in ("wrong", "secre", "secret2"):
            with pytest.raises(openai.AuthenticationError, match="missing or wrong") as error:
                client_of(url, key).models.list()
            assert error.value.code == "invalid_api_key"
        large = httpx.post(f"{url}/v1/chat/completions", content=b"a" * 10**7)
        assert (large.status_code, large.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{url}/metrics").status_code == 200


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_out_of_range(size):
    with pytest.raises(UserError, match=f"--max-body-mb: {size} is out of range. Set it above 0, for example to 20"):
        Limits(max_body_mb=size)


def test_a_failure_of_the_model_is_reported(client, tiny, monkeypatch):
    def fail(**_):
        raise RuntimeError("out of memory\nlong details")

    request = {"messages": [user("hello")], **GREEDY}
    with monkeypatch.context() as broken:
        broken.setattr(tiny.model.llm, "generate", fail)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="The model failed: RuntimeError: out of memory$"):
                client.chat.completions.create(stream=stream, **request)
    client.chat.completions.create(**request)


def test_a_failure_within_a_stream_is_reported(client, tiny, monkeypatch):
    decode = tiny.prompter.tokenizer.decode

    def fail(tokens, **options):
        if len(tokens) > 3:
            raise RuntimeError("no such piece")
        return decode(tokens, **options)

    with monkeypatch.context() as broken, pytest.raises(openai.APIError, match="no such piece"):
        broken.setattr(tiny.prompter.tokenizer, "decode", fail)
        list(client.chat.completions.create(messages=[user("Describe this image in detail.")], stream=True, **GREEDY))
