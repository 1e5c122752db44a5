"""How questions become requests: pictures read once, the engine's answers, rankings, controls."""

import io

import pytest
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.datasets.formats.records.record import File
from minigpt4.evaluation.asking import Media, adjacent, answers_to, asked, conversation_of, shuffled
from minigpt4.evaluation.benchmark import Benchmark, Question
from minigpt4.inference.ranking import rank
from minigpt4.inference.requests import Request
from tests.conftest import parity_processor


@pytest.fixture
def pictures(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20, 16), (80 * i, 0, 0)).save(path)
    return paths


def benchmark_of(*questions: Question, method="generate") -> Benchmark:
    return Benchmark(questions, {}, method=method, name="x", kind="x")


def lines_of(engine, benchmark, size=3, **how) -> dict[str, dict]:
    how = {"max_new_tokens": 6, "batch_size": size} | how
    return {line["id"]: line for lines in answers_to(engine, benchmark, asked(benchmark, 2), **how) for line in lines}


def test_each_question_is_a_conversation_about_its_picture(parity_engine, pictures):
    """Whatever the question says: only the picture shows one. In a batch each has the answer that it has alone."""
    texts = ["What?", "Is this <ImageHere> a picture?", "And <Img><ImageHere></Img>?", "Why {}?"]
    benchmark = benchmark_of(*(Question(str(i), text, (pictures[i],)) for i, text in enumerate(texts)))
    for size in (1, 3):
        lines = lines_of(parity_engine, benchmark, size)
        for i, text in enumerate(texts):
            shown = parity_processor(Image.open(pictures[i]).convert("RGB"))
            own = Request(Conversation([Turn([shown, " ", text])]), max_new_tokens=6)
            assert lines[str(i)]["answer"] == parity_engine.answer([own])[0]
            assert lines[str(i)] | {"prompt": text, "images": [f"{i}.png"]} == lines[str(i)]


def test_a_picture_is_read_once_and_encoded_once(parity_engine, pictures, monkeypatch):
    """Questions about it need not be neighbours in the file."""
    read, encoded = [], []
    own, encode = Media.images, parity_engine.encode_img
    monkeypatch.setattr(Media, "images", lambda shown, *args: read.append(shown.source.name) or own(shown, *args))
    monkeypatch.setattr(parity_engine, "encode_img", lambda images: encoded.append(len(images)) or encode(images))
    benchmark = benchmark_of(*(Question(str(i), f"What {i}?", (pictures[i % 2],)) for i in range(8)))
    lines = lines_of(parity_engine, benchmark, size=3, max_new_tokens=1)
    assert len(lines) == 8 and read == ["0.png", "1.png"] and encoded == [1, 1]
    assert [own.id for own in adjacent(asked(benchmark, 2))] == ["0", "2", "4", "6", "1", "3", "5", "7"]


def test_bytes_several_pictures_and_none(parity_engine, pictures):
    whole = benchmark_of(
        Question("file", "a?", (pictures[2],)),
        Question("bytes", "a?", (pictures[2].read_bytes(),)),
        Question("two", "a?", (pictures[1], pictures[2])),
        Question("none", "a?"),
    )
    lines = lines_of(parity_engine, whole)
    assert lines["file"]["answer"] == lines["bytes"]["answer"] and "images" not in lines["none"]
    assert len(lines["two"]["images"]) == 2 and len(lines["bytes"]["images"][0]) == 64
    text = Request(Conversation([Turn(["a?"])]), max_new_tokens=6)
    assert lines["none"]["answer"] == parity_engine.answer([text])[0]


def test_earlier_turns_and_pictures_among_the_words():
    turns = [Turn(["see ", File("a")], "yes"), Turn(["and ", File("b"), " ", File("c", video=True), "?"])]
    question = Question("x", "and <image> <video>?", dialogue=Conversation(turns))
    first, last = conversation_of(question, [1, 2], [[3, 4]]).turns
    assert (first.question, first.answer) == (["see ", 1], "yes") and last.answer is None
    assert last.question == ["and ", 2, " ", 3, " ", 4, "?"]


def test_choices_are_ranked_where_the_benchmark_says_so(parity_engine, pictures):
    choices = ("a dog", "red", "seven", "a")
    own = Question("x", "What?", (pictures[0],), choices=choices)
    free = Question("y", "What?", (pictures[0],))
    lines = lines_of(parity_engine, benchmark_of(own, free, method="rank"))
    shown = parity_processor(Image.open(pictures[0]).convert("RGB"))
    prompt = parity_engine.prompter.read(Conversation([Turn([shown, " ", "What?"])]))
    best = rank(parity_engine, [prompt], [choices])[0][0]
    assert (lines["x"]["choice"], lines["x"]["answer"]) == (best, choices[best])
    assert "choice" not in lines["y"] and "choice" not in lines_of(parity_engine, benchmark_of(own))["x"]


def test_controls_take_the_picture_away(pictures):
    questions = asked(benchmark_of(*(Question(str(i), "?", (p,)) for i, p in enumerate(pictures[:3]))), 2)
    other = shuffled(questions)
    assert len(set(other.values())) == 3 and all(own != shown for own, shown in other.items())

    (own,) = questions[2].shown
    assert [own.images(blank)[0].getpixel((0, 0))[0] for blank in (False, True)] == [160, 0]


def test_what_fails_by_itself_does_no_harm(parity_engine, pictures):
    long = Question("long", "word " * 5000, (pictures[0],))
    lines = lines_of(parity_engine, benchmark_of(Question("a", "What?", (pictures[0],)), long))
    assert lines["a"]["answer"] and "error" not in lines["a"]
    assert lines["long"]["answer"] == "" and "longer than the LLM can read" in lines["long"]["error"]


def test_a_picture_that_cannot_be_read_is_named(parity_engine, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="a.png"):
        lines_of(parity_engine, benchmark_of(Question("a", "?", (tmp_path / "a.png",))))
    truncated = io.BytesIO()
    Image.new("RGB", (64, 64)).save(truncated, "JPEG")
    with pytest.raises(UserError, match=r"^own.jsonl: line 7: .*All answers so far are kept"):
        lines_of(
            parity_engine, benchmark_of(Question("a", "?", (truncated.getvalue()[:200],), place="own.jsonl: line 7"))
        )
