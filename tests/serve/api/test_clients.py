"""Requests as clients that people use write them, and answers that continue where the client's text ends."""

import json

import httpx
import openai
import pytest

from minigpt4.serve.api.protocol import ChatRequest
from tests.serve.asking import NAME, SCENES, data_url, image_part, user
from tests.waiting import LIMIT

GREEDY = {"model": NAME, "temperature": 0}
DESCRIBE = "Describe this image in detail."
PICTURE = data_url(SCENES[0])
HEAD, _, BASE64 = PICTURE.partition(",")
BASE64URL = BASE64.replace("+", "-").replace("/", "_")
HELPFUL = "You are a helpful assistant."

BODIES = {
    "page": {  # Open WebUI
        "stream": False,
        "model": NAME,
        "messages": [
            {"role": "system", "content": HELPFUL},
            {
                "role": "user",
                "content": [{"type": "text", "text": DESCRIBE}, {"type": "image_url", "image_url": {"url": PICTURE}}],
            },
        ],
        "temperature": 0.8,
        "frequency_penalty": 0.0,
        "max_tokens": 20,
        "chat_id": "4f1f",
        "session_id": "a1",
        "id": "b2",
        "metadata": {"task": None, "features": {"web_search": False}, "tool_ids": []},
    },
    "title": {  # Open WebUI's question for a title
        "model": NAME,
        "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title.\n### Chat History:\nUSER: hi"}],
        "stream": False,
        "max_completion_tokens": 20,
    },
    "chain": {  # LangChain's ChatOpenAI
        "messages": [
            {"content": HELPFUL, "role": "system"},
            {"content": [{"type": "text", "text": DESCRIBE}, image_part(PICTURE)], "role": "user", "name": "me"},
            {"content": "The image shows a 7.", "role": "assistant"},
            {"content": "Which color is it?", "role": "user"},
        ],
        "model": NAME,
        "n": 1,
        "stream": False,
        "temperature": 0.7,
        "max_completion_tokens": 20,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "store": True,
        "service_tier": "auto",
    },
    "instructed": {"messages": [{"content": "Say hello.", "role": "system"}], "model": NAME, "max_tokens": 20},
    "agent": {
        "model": NAME,
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": HELPFUL}]},
            {"role": "system", "content": "Today is Monday."},
            {"role": "user", "content": "hello"},
            {
                "role": "assistant",
                "content": "Hello!",
                "refusal": None,
                "annotations": [{"type": "url_citation"}],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
                "reasoning_content": "They greet me.",
            },
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Look at it.", "id": 5, "opts": {"visible": True}},
            {"role": "user", "content": [{"type": "image_url", "image_url": PICTURE}]},
            {"role": "user", "content": "What is it?"},
        ],
        "max_tokens": 20,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logprobs": False,
        "verbosity": "low",
        "prompt_cache_key": "agent",
        "prediction": {"type": "content", "content": "a 7"},
        "thinking": {"type": "disabled"},
    },
    "character": {  # a page for role play: the character speaks first, and its last answer is unfinished
        "model": NAME,
        "messages": [
            {"role": "system", "content": "You are a guide."},
            {"role": "assistant", "content": "Welcome!"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "The image"},
        ],
        "max_tokens": 20,
        "presence_penalty": 0,
        "stop": ["\nYou:"],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "responses": {  # messages written for OpenAI's Responses API
        "model": NAME,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": DESCRIBE},
                    {"type": "input_image", "image_url": PICTURE, "detail": "auto", "file_id": None},
                ],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "A 7.", "annotations": []}]},
            {"role": "user", "content": [{"type": "input_text", "text": "Which color is it?"}]},
        ],
        "max_tokens": 20,
    },
    "local": {  # written for servers of local models
        "model": NAME,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 20,
        "num_ctx": 4096,
        "keep_alive": "5m",
        "think": False,
        "cache_prompt": True,
        "options": {},
        "min_p": 0,
        "best_of": 1,
        "ignore_eos": False,
        "chat_template_kwargs": {},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_what_clients_send_is_answered(api_url, name):
    body = {**BODIES[name], "seed": 1}
    answer = httpx.post(f"{api_url}/v1/chat/completions", json=body, timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    whole = answer.json()["choices"][0]["message"]["content"]
    assert whole
    streamed = httpx.post(f"{api_url}/v1/chat/completions", json={**body, "stream": True}, timeout=LIMIT)
    chunks = [json.loads(event.removeprefix("data: ")) for event in streamed.text.split("\n\n")[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


def ask(client: openai.OpenAI, *messages: dict, **more) -> str:
    return client.chat.completions.create(messages=messages, **GREEDY, **more).choices[0].message.content


def test_what_changes_nothing_is_ignored(client):
    anything = dict.fromkeys(ChatRequest.IGNORED, {"a": [1, None]})
    assert ask(client, user("hello"), extra_body=anything) == ask(client, user("hello"))


@pytest.mark.slow
def test_a_system_message_is_read(client):
    question = user(SCENES[0], DESCRIBE)
    system = {"role": "system", "content": HELPFUL}
    requests = [[question], [system, question]]
    plain, longer = (client.chat.completions.create(messages=messages, **GREEDY).usage for messages in requests)
    assert longer.prompt_tokens > plain.prompt_tokens + 5
    assert "7" in ask(client, system, question)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": PICTURE},
        {"type": "input_image", "image_url": PICTURE},
        {"type": "input_image", "image_url": {"url": PICTURE}, "detail": "high"},
        image_part(BASE64),
        image_part(BASE64URL),
        image_part(BASE64.rstrip("=")),
        image_part(f"{HEAD},{BASE64URL}"),
        image_part(f"{HEAD},{BASE64URL.rstrip('=')}"),
    ],
)
def test_ways_to_show_a_picture(client, part):
    assert BASE64.endswith("=") and {"-", "_"} <= {*BASE64URL}
    words = {"type": "input_text", "text": DESCRIBE}
    answer = ask(client, {"role": "user", "content": [part, words]})
    assert answer == ask(client, user(SCENES[0], DESCRIBE))


@pytest.mark.slow
@pytest.mark.parametrize("words", [2, 9])
def test_a_last_answer_is_continued(client, words):
    question = user(SCENES[0], DESCRIBE)
    whole = ask(client, question)
    beginning = " ".join(whole.split(" ")[:words])
    for written in (beginning, f"{beginning} "):
        messages = [question, {"role": "assistant", "content": written}]
        rest = ask(client, *messages)
        assert written + rest == whole
        chunks = list(client.chat.completions.create(messages=messages, stream=True, **GREEDY))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == rest
        first = ask(client, *messages, max_tokens=2)
        assert first and rest.startswith(first)
        last = rest.split()[-1]
        assert ask(client, *messages, stop=last) == rest[: rest.index(last)].rstrip()


@pytest.mark.slow
def test_a_complete_answer_is_continued_by_nothing(client):
    question = user(SCENES[0], DESCRIBE)
    whole = ask(client, question)
    assert ask(client, question, {"role": "assistant", "content": whole}) == ""
    assert ask(client, question, {"role": "assistant", "content": None}) == whole
