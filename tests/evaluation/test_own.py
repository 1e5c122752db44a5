"""Data of one's own is a benchmark without code; what scored before scores the same."""

import json

import pytest

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import joined
from minigpt4.datasets.formats.records.record import File
from tests.evaluation import load, write_lines

QUESTIONS = [
    {"image": "0.png", "question": "Which digit?", "answer": "7", "question_type": "digit"},
    {"image": "1.png", "question": "Is this <ImageHere> red?", "answer": "Red.", "question_type": "colour"},
    {"image": "1.png", "question": "Which {}?", "answer": "3"},
]


def own(tmp_path, rows, name="own.jsonl", **settings):
    return load("own", write_lines(tmp_path / name, rows), **settings)


def test_the_json_of_before_scores_as_it_did(tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(QUESTIONS))
    benchmark = load("tiny_scenes", tmp_path / "benchmark.json", img_path=str(tmp_path / "image"))
    assert [question.prompt for question in benchmark.questions] == [row["question"] for row in QUESTIONS]
    assert [question.pictures for question in benchmark.questions] == [
        (tmp_path / "image" / row["image"],) for row in QUESTIONS
    ]
    assert (benchmark.name, benchmark.kind) == ("tiny_scenes", "own")
    answers = ["7.", " red ", "4"]
    scores = benchmark.score(dict(zip(["#0", "#1", "#2"], answers, strict=True)))
    assert scores.scores == {"all": 0, "colour": 1, "digit": 1, "overall": 2 / 3}
    assert list(scores.scores) == ["all", "colour", "digit", "overall"] and scores.value == scores.mean == 2 / 3


def test_any_number_of_pictures_and_videos(tmp_path):
    rows = [
        {"id": "none", "question": "?", "answer": "a"},
        {"id": 2, "images": ["a.png", "b.png"], "question": "?", "answers": ["a", "b"]},
        {"id": "film", "video": "c.mp4", "question": "?", "answer": "a"},
        {"id": "held", "image": "data:image/png;base64,AAAA", "question": "?", "answer": "a"},
    ]
    none, two, film, held = own(tmp_path, rows).questions
    assert (none.id, two.id) == ("none", "2") and none.pictures == ()
    assert two.pictures == (tmp_path / "a.png", tmp_path / "b.png") and two.reference == ["a", "b"]
    assert film.videos == (tmp_path / "c.mp4",) and film.pictures == () and held.pictures == (b"\0\0\0",)


@pytest.mark.parametrize(
    ("scorer", "value"), [("official", [1, 0, 1, 0.9]), ("exact", [1, 0, 1, 1]), ("vqa", [0, 0, 0, 0.9])]
)
def test_scorers(scorer, value, tmp_path):
    rows = [
        {"question": "?", "answer": "Red"},
        {"question": "?", "answer": "red"},
        {"question": "?", "answers": ["red", "blue"]},
        {"question": "?", "answers": ["red"] * 3 + ["two"] * 7},
    ]
    answers = {"#0": "red", "#1": "blue", "#2": "Blue.", "#3": "red"}
    if scorer == "vqa":
        answers["#2"] = "green"
    scores = own(tmp_path, rows).score(answers, scorer)
    assert [scores.samples[key].value for key in answers] == pytest.approx(value)


CHOICES = {"question": "Which?", "choices": ["red", "a blue one", "green"]}


@pytest.mark.parametrize("answer", ["a blue one", "B", 1])
@pytest.mark.parametrize("said", [1, "A blue one.", "b", "(B)", "B. a blue one"])
def test_choices(answer, said, tmp_path):
    benchmark = own(tmp_path, [{**CHOICES, "answer": answer}])
    scores = benchmark.score({"#0": said})
    assert scores.value == 1 and scores.samples["#0"].understood == "a blue one" and scores.unparsed == 0
    assert benchmark.ranked(benchmark.questions[0]) and benchmark.questions[0].prompt == "Which?"


@pytest.mark.parametrize(("said", "unparsed"), [("red", 0), (2, 0), ("D", 1), ("a red one", 1), ("", 1)])
def test_wrong_choices(said, unparsed, tmp_path):
    scores = own(tmp_path, [{**CHOICES, "answer": 1}]).score({"#0": said})
    assert (scores.value, scores.unparsed) == (0, unparsed)


def test_choices_that_are_not_ranked_are_shown(tmp_path):
    benchmark = own(tmp_path, [{**CHOICES, "answer": 1}], method="generate")
    assert not benchmark.ranked(benchmark.questions[0])
    assert benchmark.questions[0].prompt.startswith("Which?\nA. red\nB. a blue one\nC. green\nAnswer with the option's")


def test_records_of_training(tmp_path):
    rows = [
        {"image": "a", "conversations": [{"from": "user", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "X"}]},
        {"image": "a.png", "question": "<image>\nWhat is it?", "answer": "X"},
        {"images": ["a.png", "b.png"], "instruction": "Which?", "output": "X", "type": "t"},
        {"images": ["a.png", "b.png"], "query": "Is <image> like <image>?", "response": "X"},
        {"image": "a.png", "question": ["One?", "Two?"], "answer": ["1", "2"]},
    ]  # fmt: skip
    one, pair, two, among, turns = own(tmp_path, rows).questions
    assert [q.prompt for q in (one, pair, two)] == ["What?", "What is it?", "Which?"] and not one.dialogue
    assert two.pictures == (tmp_path / "a.png", tmp_path / "b.png") and two.tags == {"type": "t"}
    assert among.prompt == "Is <image> like <image>?"
    assert among.dialogue.turns[0].question == ["Is ", File("a.png"), " like ", File("b.png"), "?"]
    assert [turn.answer for turn in turns.dialogue.turns] == ["1", None]
    assert joined(turns.dialogue.turns[0].question) == [File("a.png"), " One?"]
    assert (turns.prompt, turns.reference) == ("Two?", ["2"])
    assert own(tmp_path, rows).score({f"#{i}": "x" for i in range(5)}).scores == {"all": 0.75, "overall": 0.8, "t": 1}


def test_the_template_of_questions(tmp_path):
    (question,) = own(tmp_path, [{**CHOICES, "answer": 1}], prompt="[vqa] {question}\n{choices}").questions
    assert question.prompt == "[vqa] Which?\nA. red\nB. a blue one\nC. green"


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{"question": "?", "answer": "a", "choices": None}]), tmp_path / "own.parquet")
    assert load("own", tmp_path / "own.parquet").score({"#0": "A"}).value == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "line 2: has no 'answer', but 'question'"),
        ({"query": "?"}, "line 2: unknown format: it has the keys query"),
        ({"question": "?", "answers": []}, "line 2: 'answers' is \\[\\], expected a list of texts"),
        ({"question": "?", "answer": 3}, "line 2: 'answer' is 3, expected text"),
        ({"question": "?", "answer": "a", "image": 3}, "line 2: 'image' is '3', expected a file's name"),
        ({**CHOICES, "answer": "yellow"}, "line 2: the answer 'yellow' is not one of the choices"),
        ({**CHOICES, "answer": 3}, "line 2: 'answer' is 3, but there are 3 choices"),
        ({"image": "a", "conversations": []}, "line 2: turns: no turns"),
        ({"question": "?", "answer": "a", "type": ["x"]}, "line 2: 'type' is \\[\"x\"\\], expected text"),
        ({"question": "?", "answer": "a", "type": "overall"}, "line 2: the type 'overall' is what the score of all"),
    ],
)
def test_records_that_are_wrong(row, message, tmp_path):
    with pytest.raises(UserError, match=message):
        own(tmp_path, [{"question": "?", "answer": "a"}, row])


def test_the_scorer_choice_needs_choices(tmp_path):
    with pytest.raises(UserError, match=r"line 2: it has no choices, which .*scorer=choice needs. Set it to official"):
        own(tmp_path, [{**CHOICES, "answer": 0}, {"question": "?", "answer": "a"}], scorer="choice")
