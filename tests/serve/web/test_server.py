"""The demo over HTTP: what a visitor's browser does, done by gradio_client."""

import re
import socket
import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from minigpt4 import cli
from minigpt4.inference.options import AnswerOptions
from minigpt4.inference.requests import Answer
from minigpt4.serve.address import bind
from minigpt4.serve.web import server
from tests.picture_files import write_video
from tests.serve.visiting import OPTIONS, ask, message, number_of, pictures, texts
from tests.waiting import LIMIT, wait_for


@pytest.fixture
def client(url) -> Client:
    return Client(url, verbose=False)


@pytest.mark.slow
def test_several_turns_and_pictures_in_any_of_them(client, picture, echo, page_engine):
    assert ask(client, "none yet") == ["none yet", "none yet no picture"]
    red = f"one {number_of(page_engine, 'red')}"
    assert ask(client, "one", picture("red"))[2:] == ["one", red]
    shown = client.predict(message("more", [picture("blue"), picture("green")]), *OPTIONS, api_name="/ask")
    assert texts(shown)[3:] == [red, "more", f"more {number_of(page_engine, 'red', 'blue', 'green')}"]
    assert pictures(shown) == 2  # the second message's two are on one sheet


@pytest.mark.slow
def test_a_video_is_asked_about_by_its_frames(client, tmp_path, echo):
    video = write_video(tmp_path / "v.mp4", [(12 * n,) * 3 for n in range(20)])
    assert ask(client, "how many", video)[1].startswith("how many 8 ")


@pytest.mark.slow
def test_answer_is_streamed(client, picture, echo):
    echo.go.clear()
    job = client.submit(message("a question of several words", [picture("red")]), *OPTIONS, api_name="/ask")
    wait_for(lambda: job.outputs() and "a question" in "".join(texts(job.outputs()[-1])[-1:]))
    echo.go.set()
    assert texts(job.result())[1].startswith("a question of several words 1")
    waiting, *outputs = job.outputs()
    assert (texts(waiting), waiting[-1]) == ([], "Reading …")
    assert texts(outputs[0])[1] == "…"


@pytest.mark.slow
def test_status_line(client, echo):
    *_, status = client.predict(message("one two three"), *OPTIONS, api_name="/ask")
    said = r"First token after \d+\.\d\d s · \d+\.\d tokens/s · 15 of \d+ tokens used \(5 in the answer\)"
    assert re.fullmatch(said, status)


@pytest.mark.slow
def test_status_line_of_an_empty_answer(client, page_engine, monkeypatch):
    monkeypatch.setattr(page_engine, "answer", lambda _: [Answer("")])
    *_, status = client.predict(message("?"), *OPTIONS, api_name="/ask")
    assert " · the answer is empty · " in status


@pytest.mark.slow
def test_a_visitor_reads_what_is_forgotten(client, echo, page_engine, monkeypatch):
    notes = []
    monkeypatch.setattr(gr, "Info", notes.append)
    monkeypatch.setattr(
        page_engine, "prompter", replace(page_engine.prompter, window=300 + 150)
    )  # 300 are kept for an answer
    echo.seconds = 0
    for number in range(12):
        *_, status = client.predict(message(f"number {number} of several words"), *OPTIONS, api_name="/ask")
        forgotten = [int(n) for text in notes for n in re.findall(r"no longer reads its first (\d+) questions", text)]
        assert bool(forgotten) == ("questions forgotten" in status)
    assert 1 < len(notes) < 6 and forgotten == sorted(set(forgotten))
    assert f"first {forgotten[-1]} questions forgotten" in status


@pytest.mark.slow
def test_two_visitors_at_once_never_mix(url, picture, echo, page_engine, monkeypatch):
    both, answer = threading.Barrier(2), page_engine.answer

    def together(requests):
        both.wait(LIMIT)  # fails unless the two answers are made at the same time
        return answer(requests)

    monkeypatch.setattr(page_engine, "answer", together)
    visitors = {color: Client(url, verbose=False) for color in ("red", "blue")}
    for turn in (1, 2):
        jobs = {
            color: visitor.submit(message(f"{color} {turn}", [picture(color)]), *OPTIONS, api_name="/ask")
            for color, visitor in visitors.items()
        }
        for color, job in jobs.items():
            asked = [f"{color} {t} {number_of(page_engine, *[color] * t)}" for t in (1, 2)]
            expected = [text for t in range(turn) for text in (f"{color} {t + 1}", asked[t])]
            assert texts(job.result()) == expected


@pytest.mark.slow
def test_stop_ends_the_model_and_keeps_what_it_said(client, echo):
    echo.go.clear()
    job = client.submit(message("word " * 200), *OPTIONS, api_name="/ask")
    wait_for(lambda: len(job.outputs()) >= 3)
    client.predict(api_name="/stop")
    shown = job.result(timeout=LIMIT)
    assert echo.ended == ["interrupt"]
    assert 0 < len(texts(shown)[1].split()) <= 5 and shown[-1].endswith("· stopped")


@pytest.mark.slow
def test_restart_forgets_words_and_pictures(client, picture, echo):
    ask(client, "one", picture("red"))
    assert texts(client.predict(api_name="/restart")) == []
    assert ask(client, "two") == ["two", "two no picture"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Greedy", "Beams"])
def test_restart_mid_answer_ends_the_model(client, echo, mode):
    echo.go.clear()
    job = client.submit(message("word " * 200), mode, *OPTIONS[1:], api_name="/ask")
    wait_for(lambda: len(job.outputs()) >= 2)
    client.predict(api_name="/restart")
    assert texts(job.result(timeout=LIMIT)) == []
    assert echo.ended == ["interrupt"]


@pytest.mark.slow
def test_undo_gives_the_question_back_with_its_pictures(client, picture, echo, page_engine):
    ask(client, "one", picture("red"))
    shown = client.predict(api_name="/undo")
    assert texts(shown) == []
    files = [Path(file["path"] if isinstance(file, dict) else file) for file in shown[1]["value"]["files"]]
    assert shown[1]["value"]["text"] == "one"
    assert ask(client, "two", *files) == ["two", f"two {number_of(page_engine, 'red')}"]
    client.predict(api_name="/undo")
    with pytest.raises(AppError, match="nothing to take back"):
        client.predict(api_name="/undo")


@pytest.mark.slow
def test_edit_asks_again_about_the_same_picture(client, picture, echo, page_engine):
    ask(client, "one", picture("red"))
    ask(client, "two")
    red = number_of(page_engine, "red")
    second = client.predict(2, "3 &lt; 4?", *OPTIONS, api_name="/edit")  # as the page had shown it
    assert texts(second) == ["one", f"one {red}", "3 < 4?", f"3 &lt; 4? {red}"]
    assert texts(client.predict(0, "uno", *OPTIONS, api_name="/edit")) == ["uno", f"uno {red}"]
    for index, words, complaint in ((2, "due", "no longer part"), (-3, "due", "no longer part"), (0, " ", "is empty")):
        with pytest.raises(AppError, match=complaint):
            client.predict(index, words, *OPTIONS, api_name="/edit")


@pytest.mark.slow
def test_regenerate_asks_the_last_question_again(client, echo):
    with pytest.raises(AppError, match="Nothing was asked yet"):
        client.predict(*OPTIONS, api_name="/regenerate")
    ask(client, "one")
    ask(client, "two")
    echo.said = "another answer"
    shown = client.predict(*OPTIONS, api_name="/regenerate")
    assert texts(shown) == ["one", "one no picture", "two", "another answer"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Greedy", "Sample", "Beams"])
def test_modes_with_the_real_model(client, picture, mode):
    assert len(ask(client, "What is this?", picture("red"), options=[mode, *OPTIONS[1:]])) == 2


@pytest.mark.slow
def test_options_reach_the_model(client, echo):
    for options in (
        ["Greedy", 5, 1, 0.9, 1, 1, 0, 5, -1],
        ["Sample", 5, 0.5, 0.8, 1.2, 1, 2, 6, 7],
        ["Beams", 4, 1, 0.9, 1, -1, 0, 5, -1],
        ["Sample", 5, 1, 0.9, 1, 1, 0, 5, -1],
    ):
        shown = client.predict(message("?"), *options, api_name="/ask")
    most = AnswerOptions(max_new_tokens=5)
    assert [AnswerOptions(**options) for options in echo.options[:3]] == [
        most,
        AnswerOptions(6, 2, do_sample=True, temperature=0.5, top_p=0.8, repetition_penalty=1.2, seed=7),
        replace(most, num_beams=4, length_penalty=-1),
    ]
    assert shown[-1].endswith(f"· seed {echo.options[3]['seed']}")  # drawn, and shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["Greedy", 5, 1, 0.9, 1, 1, 9, 8, -1], "^Min tokens: 9 is out of range. Set it to 0 to Max tokens.$"),
        (["Greedy", 5, 1, 0.9, 1, 1, 0, 10**6, -1], "^Max tokens: 1000000 leaves nothing of the"),
        (["Sample", 5, 1, 0.9, 1, 1, 0, 8, 2**70], f"^Seed: {2**70} is out of range. Set it to 0 to"),
        (["Other", 5, 1, 0.9, 1, 1, 0, 8, -1], "Other"),
    ],
)
def test_options_out_of_range_in_words(client, options, complaint):
    with pytest.raises(AppError, match=complaint):
        ask(client, "?", options=options)


@pytest.mark.slow
def test_an_emptied_field_is_the_default(client, echo):
    ask(client, "?", options=["Greedy", 5, 1, 0.9, 1, 1, None, None, -1])
    *_, status = client.predict(message("?"), "Sample", 5, 1, 0.9, 1, 1, None, None, None, api_name="/ask")
    assert AnswerOptions(**echo.options[0]) == AnswerOptions()
    assert AnswerOptions(**echo.options[1]) == AnswerOptions(do_sample=True, seed=int(status.rpartition("seed ")[2]))


@pytest.mark.slow
def test_bad_files_in_words_and_the_session_continues(client, echo, picture, bad_files, tmp_path):
    ask(client, "one", picture("red"))
    with pytest.raises(AppError, match="The question is empty"):
        ask(client, "  ", picture("red"))
    for file, words in bad_files.items():
        with pytest.raises(AppError, match=words) as error:
            ask(client, "What is this?", file)
        assert "gradio" not in str(error.value)  # where the file lies
    assert ask(client, "two")[2] == "two"


def test_a_file_over_the_limit_is_refused(url):
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("huge.png", bytes(1_100_000))})
    assert answer.status_code == 413


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Greedy", "Beams"])
def test_failure_of_the_model_in_words_and_the_session_continues(client, picture, echo, page_engine, monkeypatch, mode):
    before = ask(client, "one", picture("red"))

    def fail(requests):
        if requests[0].on_text:
            requests[0].on_text("half an ")
        raise RuntimeError("out of memory\nlong details")

    with monkeypatch.context() as broken:
        broken.setattr(page_engine, "answer", fail)
        job = client.submit(message("two", [picture("blue")]), mode, *OPTIONS[1:], api_name="/ask")
        with pytest.raises(AppError, match="The model failed: RuntimeError: out of memory"):
            job.result()
    last = job.outputs()[-1]
    assert texts(last) == before
    assert last[1]["value"]["text"] == "two" and len(last[1]["value"]["files"]) == 1  # back in the box
    assert ask(client, "three")[:3] == [*before, "three"]


def test_files_of_the_server_cannot_be_named(url, picture):
    data = {"path": str(picture("red")), "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [{"text": "What is this?", "files": [data]}, *OPTIONS]}
    event = httpx.post(f"{url}/gradio_api/call/ask", json=asked).json()["event_id"]
    answer = httpx.get(f"{url}/gradio_api/call/ask/{event}").text
    assert "event: error" in answer and "not uploaded by a user" in answer


@pytest.mark.slow
def test_only_who_knows_the_password_comes_in(example):
    from minigpt4.serve.web.handlers import Handlers
    from minigpt4.serve.web.page import build_page
    from tests.serve.conftest import free_port

    page, port = build_page(Handlers(None), [example]), free_port()
    server.launch(page, bind("127.0.0.1", port), "127.0.0.1", auth=[("ada", "a:b"), ("bob", "c")])
    try:
        config = f"http://127.0.0.1:{port}/config"
        assert httpx.get(config).status_code == 401
        with httpx.Client() as browser:
            login = f"http://127.0.0.1:{port}/login"
            assert browser.post(login, data={"username": "ada", "password": "c"}).status_code == 400
            assert browser.post(login, data={"username": "ada", "password": "a:b"}).status_code == 200
            assert browser.get(config).status_code == 200
    finally:
        page.close()


@pytest.mark.slow
def test_address_in_use_is_one_line(minigpt4):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = minigpt4("demo", "--port", port := taken.getsockname()[1])
    assert code == 2 and f"--port {port}: " in err and "in use" in err


@pytest.mark.slow
@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no.such.host.invalid", 7860)])
def test_address_that_cannot_be_is_one_line(host, port, minigpt4):
    code, _, err = minigpt4("demo", "--host", host, "--port", port, "--options", "model.llama_model=/no/llm")
    assert code == 2 and "Choose another" in err and "/no/llm" in err  # all at once


@pytest.mark.slow
def test_any_port_will_do(tiny, monkeypatch):
    pages = []

    def ask(page: gr.Blocks) -> None:
        pages.append(page)
        assert httpx.get(page.local_url).status_code == 200

    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: tiny)
    monkeypatch.setattr(gr.Blocks, "block_thread", ask)
    cli.main(["demo", "--port", "0"])
    pages[0].close()
