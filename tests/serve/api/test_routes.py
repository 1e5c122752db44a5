"""The API by OpenAI's own client, over HTTP."""

import base64
import io
import json
from unittest.mock import ANY

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import generate_latest

from minigpt4.inference.chat import Chat
from minigpt4.serve.api.service import Limits, Service
from tests.serve.asking import NAME, SCENES, client_of, image_part, running, user

DESCRIBE = "Describe this image in detail."
GREEDY = {"model": NAME, "temperature": 0}
SAMPLED = {"model": NAME, "messages": [user(DESCRIBE)], "temperature": 2, "max_tokens": 20}


@pytest.fixture
def chat(tiny) -> Chat:
    return Chat(tiny)


def show(chat: Chat, number: int) -> None:
    with Image.open(SCENES[number]) as image:
        chat.upload_img(image)


def text_of(answer) -> str:
    return answer.choices[0].message.content


def streamed(client, **request) -> tuple[list[list[str]], list[str], object]:
    """The pieces of each choice, how each ended, and the last chunk."""
    pieces, ends = [[] for _ in range(request.get("n", 1))], [""] * request.get("n", 1)
    for chunk in client.chat.completions.create(stream=True, **request):
        for choice in chunk.choices:
            pieces[choice.index] += [choice.delta.content] if choice.delta.content else []
            ends[choice.index] += choice.finish_reason or ""
    return pieces, ends, chunk


@pytest.mark.slow
def test_an_answer_is_the_chats(client, chat):
    show(chat, 0)
    answer = client.chat.completions.create(messages=[user(SCENES[0], DESCRIBE)], **GREEDY)
    expected = chat.answer(DESCRIBE)
    assert text_of(answer) == expected
    assert len(expected) > 50
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (expected.prompt_tokens, expected.new_tokens)
    assert answer.usage.total_tokens == expected.prompt_tokens + expected.new_tokens
    assert answer.model == NAME


@pytest.mark.slow
def test_later_turns_and_several_pictures_are_the_chats(client, chat):
    show(chat, 1)
    messages = [user(SCENES[1], "How many digits are there?")]
    for question in ("Which digit is on the left?", "What color is it?"):
        answer = text_of(client.chat.completions.create(messages=messages, **GREEDY))
        assert answer == chat.answer(messages[-1]["content"][-1]["text"])
        messages += [{"role": "assistant", "content": answer}, user(question)]
    messages[-1] = user("Compare", SCENES[2], "and", SCENES[3], "please.")
    pictures = [Image.open(scene) for scene in SCENES[2:4]]
    parts = ["Compare", pictures[0], "and", pictures[1], "please."]
    *_, expected = chat.stream(parts)
    assert text_of(client.chat.completions.create(messages=messages, **GREEDY)) == expected


@pytest.mark.slow
def test_a_stream_is_the_same_answer_in_pieces(client):
    request = {"messages": [user(SCENES[0], DESCRIBE)], **GREEDY}
    plain = client.chat.completions.create(**request)
    (pieces,), ends, last = streamed(client, stream_options={"include_usage": True}, **request)
    assert "".join(pieces) == text_of(plain)
    assert len(pieces) > 10
    assert ends == ["stop"]
    assert (last.choices, last.usage) == ([], plain.usage)


def test_what_a_stream_looks_like(api_url):
    request = {"messages": [user(DESCRIBE)], "max_tokens": 2, "stream": True, **GREEDY}
    answer = httpx.post(f"{api_url}/v1/chat/completions", json=request)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.slow
def test_bodies_hold_no_more_than_is_meant(api_url):
    """OpenAI's types know many fields that this server never sets."""
    request = {"messages": [user(DESCRIBE)], "max_tokens": 2, **GREEDY}
    body = httpx.post(f"{api_url}/v1/chat/completions", json=request).json()
    (choice,), usage = body.pop("choices"), body.pop("usage")
    assert body.keys() == {"id", "object", "created", "model"}
    assert choice.pop("message") == {"role": "assistant", "content": ANY, "refusal": None}
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length"}
    assert usage == {"prompt_tokens": ANY, "completion_tokens": 2, "total_tokens": usage["prompt_tokens"] + 2}
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{api_url}/v1/chat/completions", json=request).text
    chunks = [json.loads(event.removeprefix("data: ")) for event in answer.split("\n\n")[:-2]]
    assert [chunk.pop("usage") for chunk in chunks] == [None] * (len(chunks) - 1) + [usage]
    assert all(chunk.keys() == {*body, "choices"} for chunk in chunks)
    assert chunks[-1]["choices"] == []
    begin, *middle, end = (chunk["choices"][0] for chunk in chunks[:-1])
    rest = {"index": 0, "logprobs": None, "finish_reason": None}
    assert begin == {"delta": {"role": "assistant", "content": ""}, **rest}
    assert middle and all(piece == {"delta": {"content": ANY}, **rest} for piece in middle)
    assert end == {"delta": {}, **rest, "finish_reason": "length"}
    card = {"id": NAME, "object": "model", "created": ANY, "owned_by": "minigpt4"}
    assert httpx.get(f"{api_url}/v1/models").json() == {"object": "list", "data": [card]}
    assert httpx.get(f"{api_url}/v1/models/{NAME}").json() == card


@pytest.mark.slow
def test_seeds_reproduce_whatever_else_is_asked(client):
    def answers(n: int = 1, **more) -> list[str]:
        return [choice.message.content for choice in client.chat.completions.create(n=n, **SAMPLED, **more).choices]

    four = answers(4, seed=7)
    assert four == answers(4, seed=7)
    assert four == [answers(seed=seed)[0] for seed in (7, 8, 9, 10)]
    assert len(set(four)) > 1
    assert ["".join(pieces) for pieces in streamed(client, n=4, seed=7, **SAMPLED)[0]] == four
    assert len({answers()[0] for _ in range(8)}) > 1  # no seed, no repetition


@pytest.mark.slow
def test_the_default_temperature_is_1(client):
    request = {"model": NAME, "messages": [user(DESCRIBE)], "seed": 3}
    set_to = ({}, {"temperature": 1}, {"temperature": 2})
    default, one, two = (client.chat.completions.create(**request, **more) for more in set_to)
    assert text_of(default) == text_of(one) != text_of(two)


def test_n_counts_the_prompt_once(client):
    one, three = (client.chat.completions.create(n=n, messages=[user("hello")], **GREEDY) for n in (1, 3))
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_longest_answer(client, limit):
    answer = client.chat.completions.create(messages=[user(DESCRIBE)], **{limit: 5}, **GREEDY)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stops_are_cut_and_their_halves_never_shown(data, client):
    request = {"messages": [user(SCENES[0], DESCRIBE)], **GREEDY}
    whole = text_of(client.chat.completions.create(**request))
    places = st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 12)).map(
        lambda place: whole[place[0] :][: place[1]]
    )
    stops = data.draw(st.lists(places, min_size=1, max_size=4))
    expected = whole[: min(whole.find(stop) for stop in stops)].strip()
    answer = client.chat.completions.create(stop=stops, **request)
    assert text_of(answer) == expected
    assert answer.choices[0].finish_reason == "stop"
    (pieces,), ends, _ = streamed(client, stop=stops, **request)
    assert ("".join(pieces), ends) == (expected, ["stop"])
    if len(stops) == 1:
        assert text_of(client.chat.completions.create(stop=stops[0], **request)) == expected


@pytest.mark.slow
def test_what_asks_for_nothing_is_taken(client):
    nothing = {"logprobs": False, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "user": "me"}
    nothing |= {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "stop": None, "modalities": ["text"]}
    nothing |= {"prompt_cache_key": "mine", "safety_identifier": "me", "service_tier": "auto"}
    first = client.chat.completions.create(messages=[user("hello")], extra_body=nothing, **GREEDY)
    assert text_of(first) == text_of(client.chat.completions.create(messages=[user("hello")], **GREEDY))
    # an answer goes back as it came
    messages = [user("hello"), first.choices[0].message, user("again")]
    again = client.chat.completions.create(messages=messages, **GREEDY)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        lambda data: base64.b64encode(data).decode(),
        lambda data: base64.encodebytes(data).decode(),  # as in mails, with line breaks
        lambda data: f"Data:Image/JPEG;Base64,{base64.b64encode(data).decode()}",
        lambda data: f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}",
        lambda data: f"data:;base64,{base64.b64encode(data).decode()}",
    ],
)
def test_ways_to_write_a_picture(client, write):
    answers = []
    for picture in (SCENES[0], write(SCENES[0].read_bytes())):
        messages = [{"role": "user", "content": [image_part(picture), {"type": "text", "text": DESCRIBE}]}]
        answers.append(text_of(client.chat.completions.create(messages=messages, **GREEDY)))
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_a_top_p_of_0_takes_the_likeliest_token(client):
    request = {"model": NAME, "messages": [user(DESCRIBE)], "max_tokens": 20}
    likeliest = client.chat.completions.create(temperature=0, **request)
    for seed in range(3):
        drawn = client.chat.completions.create(temperature=2, top_p=0, seed=seed, **request)
        assert text_of(drawn) == text_of(likeliest)


@pytest.mark.slow
def test_an_answer_may_have_been_nothing(client):
    said = [{"role": "assistant", "content": nothing} for nothing in (None, "")]
    answers = [
        text_of(client.chat.completions.create(messages=[user("hello"), own, user(DESCRIBE)], **GREEDY)) for own in said
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("temperature", [5e-324, 0.005, 0.01, 2])
@pytest.mark.parametrize("more", [{"top_p": 5e-324}, {"repetition_penalty": 10}, {"seed": -(2**63)}])
def test_extreme_sampling(client, temperature, more):
    request = {"model": NAME, "messages": [user("hello")], "temperature": temperature, "max_tokens": 5}
    answer = client.chat.completions.create(**request, extra_body=more)
    assert answer.choices[0].finish_reason in ("stop", "length") and 1 <= answer.usage.completion_tokens <= 5


@pytest.mark.slow
def test_pictures_are_read_the_way_up_that_the_camera_meant(client, tmp_path):
    """And in any mode."""
    with Image.open(SCENES[0]) as scene:
        upright, turned = scene.convert("RGB"), scene.rotate(90, expand=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        file = io.BytesIO()
        turned.save(file, "png", exif=exif)
    (tmp_path / "turned.png").write_bytes(file.getvalue())
    upright.putalpha(255)
    answers = [
        text_of(client.chat.completions.create(messages=[user(picture, DESCRIBE)], **GREEDY))
        for picture in (upright, tmp_path / "turned.png")
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_metrics(tiny):
    service = Service(tiny, NAME, Limits())
    with running(service) as url:
        client = client_of(url)
        usage = client.chat.completions.create(messages=[user("hello")], **GREEDY).usage
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(messages=[], **GREEDY)
        streamed(client, messages=[user("hello")], **GREEDY)
        client.chat.completions.create(messages=[user("hello")], n=2, **GREEDY)  # reads the prompt once
    value = service.metrics.registry.get_sample_value
    assert value("minigpt4_requests_total", {"status": "200"}) == 3
    assert value("minigpt4_requests_total", {"status": "400"}) == 1
    assert value("minigpt4_tokens_total", {"kind": "prompt"}) == 3 * usage.prompt_tokens
    assert value("minigpt4_tokens_total", {"kind": "completion"}) == 4 * usage.completion_tokens
    for name, count in (("queue", 4), ("first_token", 4), ("request", 4)):
        assert value(f"minigpt4_{name}_seconds_count") == count
        assert 0 < value(f"minigpt4_{name}_seconds_sum") < 60
    assert value("minigpt4_batch_size_count") == 3
    assert "minigpt4_queue_length 0.0" in generate_latest(service.metrics.registry).decode()


@pytest.mark.slow
def test_answers_to_one_request_share_its_pictures_and_count_them_once(client, tiny, monkeypatch):
    encoded, encode = [], tiny.model.encode_img
    monkeypatch.setattr(tiny.model, "encode_img", lambda own: encoded.append(len(own)) or encode(own))
    request = {"model": NAME, "messages": [user(SCENES[0], DESCRIBE, SCENES[1])], "temperature": 2, "max_tokens": 8}
    three = client.chat.completions.create(n=3, seed=4, **request)
    assert encoded == [2]
    alone = [client.chat.completions.create(seed=seed, **request) for seed in (4, 5, 6)]
    assert [choice.message.content for choice in three.choices] == list(map(text_of, alone))
    assert three.usage.prompt_tokens == alone[0].usage.prompt_tokens > 2 * tiny.prompter.rows
    assert three.usage.completion_tokens == sum(own.usage.completion_tokens for own in alone)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["<ImageHere>", "<Img><ImageHere></Img>"])
def test_what_looks_like_a_picture_is_words(client, tiny, words):
    messages = [user(words), {"role": "assistant", "content": words}, user(words)]
    answer = client.chat.completions.create(messages=[{"role": "system", "content": words}, *messages], **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 4 * len(tiny.prompter.encode(words))


@pytest.mark.slow
def test_a_stop_string_of_which_the_limit_leaves_half_takes_nothing_away(client):
    request = {"messages": [user(SCENES[0], DESCRIBE)], "max_tokens": 6, **GREEDY}
    whole = text_of(client.chat.completions.create(**request))
    stop = whole[-2:] + "~"
    answer = client.chat.completions.create(stop=stop, **request)
    assert (text_of(answer), answer.choices[0].finish_reason) == (whole, "length")
    (pieces,), ends, _ = streamed(client, stop=stop, **request)
    assert ("".join(pieces), ends) == (whole, ["length"])
