"""What can't be scored or asked is reported in one line that names the file, the record and the cure."""

import json
import re
from dataclasses import replace

import pytest

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.names import check_names
from minigpt4.evaluation.predictions import read_predictions
from tests.config import STAGE1
from tests.evaluation import DATA, VARIANTS, load, read_lines, write_lines

HM = DATA / "hm"
MEME = '{"id": 1, "img": "a", "text": "b", "label": %d}'


def predictions(kind: str = "hm") -> dict[str, str]:
    return {str(row["id"]): row["prediction"] for row in read_lines(DATA / kind / "predictions.jsonl")}


def test_scores_over_nothing():
    with pytest.raises(UserError, match="^hm: there is no prediction, so there is no score"):
        load("hm", HM).score({})


@pytest.mark.parametrize("content", ["", "[]"])
def test_an_annotation_without_questions(content, tmp_path):
    (tmp_path / "dev.jsonl").write_text(content)
    with pytest.raises(UserError, match="eval_file_path: .* holds no questions for hm"):
        load("hm", tmp_path)


def test_unknown_and_missing_ids():
    benchmark, own = load("hm", HM), predictions()
    with pytest.raises(UserError, match=r"^hm: 'x' is not a question's id \(1 such predictions of 13\)"):
        benchmark.score(own | {"x": "yes"})
    del own["10003"], own["10005"]
    with pytest.raises(UserError, match="^hm: 2 of 12 questions have no prediction, such as '10003'"):
        benchmark.score(own)


@pytest.mark.parametrize("kind", ["scienceqa", "seedbench"])
def test_what_is_missing_is_wrong_where_the_official_code_has_it_so(kind):
    benchmark = load(kind, DATA / kind)
    right = {q.id: q.reference for q in benchmark.questions}
    assert benchmark.score(right).mean == 1
    del right[benchmark.questions[0].id]
    scores = benchmark.score(right)
    assert scores.unparsed == 1 and scores.mean == 1 - 1 / len(benchmark.questions)
    assert scores.value == pytest.approx(100 * scores.mean, abs=0.005)  # SEED-Bench's is rounded


def test_gqa_takes_answers_to_more_than_is_asked():
    benchmark = load("gqa", VARIANTS / "gqa")
    answers = {q.id: q.reference for q in benchmark.questions}
    assert benchmark.score(answers | {"1": "x"}).value == 100
    with pytest.raises(UserError, match="15 of 15 questions have no prediction"):
        benchmark.score({"1": "x"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 10000, "prediction": "yes"}'] * 2, "line 2: '10000' has a prediction already, in line 1"),
        (
            ['{"id": 10000, "prediction": "yes"}', '{"id": 1, "prediction": ""}'],
            "line 2: '1' is not a question's id in hm",
        ),
        (["", '{"id": 10000, "prediction": "yes"'], "line 2 is not JSON: "),
        (["3"], "line 1: expected an object with keys, found 3"),
        (['{"prediction": "yes"}'], "line 1: has no 'id', but 'prediction'"),
        (['{"id": 10000, "answer": "yes"}'], "line 1: has no 'prediction', but 'id', 'answer'"),
        (['{"id": [1], "prediction": "yes"}'], "line 1: 'id' is [1], expected text or a whole number"),
        (['{"id": 10000, "prediction": ["yes"]}'], "line 1: the prediction is \"['yes']\", expected text"),
        (['[{"id": 10000, "prediction": true}]'], "record 1: the prediction is 'True', expected text"),
    ],
)
def test_wrong_lines_of_predictions(lines, message, tmp_path):
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_predictions(tmp_path / "p.jsonl", load("hm", HM))
    assert str(error.value).startswith(str(tmp_path / "p.jsonl"))


def test_predictions_that_are_no_file(tmp_path):
    with pytest.raises(UserError, match="^--predictions: '.*' is not a file. Set it to JSON lines of"):
        read_predictions(tmp_path, load("hm", HM))
    (tmp_path / "p").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_predictions(tmp_path / "p", load("hm", HM))


@pytest.mark.parametrize(("line", "said"), [({"choice": 1}, 1), ({"ranking": [2, 0, 1]}, 2), ({"prediction": 0}, 0)])
def test_the_number_of_a_candidate(line, said, tmp_path):
    benchmark = load("iconvqa", DATA / "iconvqa")
    file = write_lines(tmp_path / "p", [{"id": "2000", **line}])
    assert read_predictions(file, benchmark) == {"2000": said}


@pytest.mark.parametrize("line", [{"choice": 5}, {"prediction": 5}, {"prediction": -1}, {"ranking": [9]}])
def test_a_candidate_that_there_is_not(line, tmp_path):
    with pytest.raises(UserError, match="line 1: .*there are 5"):
        read_predictions(write_lines(tmp_path / "p", [{"id": "2000", **line}]), load("iconvqa", DATA / "iconvqa"))


def test_an_alias_of_two_questions_names_neither(tmp_path):
    benchmark = load("refcoco", VARIANTS / "refcoco", split="val")
    twice = benchmark.questions[0].aliases[0]
    with pytest.raises(UserError, match=f"line 1: '{twice}' is not a question's id"):
        read_predictions(write_lines(tmp_path / "p", [{"id": twice, "prediction": ""}]), benchmark)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("pope", {"split": "populr"}, "datasets.pope.split: 'populr' is not there. Did you mean 'popular'?"),
        ("scienceqa", {"split": "tst"}, "scienceqa.split: 'tst' is not there. Did you mean 'test'?"),
        ("mme", {"split": "val"}, "mme.split: 'val', but mme has no splits. Remove it."),
        ("hm", {"scorer": "orignal"}, "hm.scorer: 'orignal' is not a scorer of hm. Did you mean 'original'?"),
        ("textvqa", {"scorer": "original"}, "textvqa.scorer: 'original' is not a scorer of textvqa.* Known: official."),
        ("hm", {"method": "rank"}, "hm.method: rank, but no question of hm has choices. Set it to generate."),
        ("hm", {"prompt": "{question}"}, "hm.prompt: '{question}' is not a template. In braces it may hold {text}."),
        ("hm", {"prompt": "{text.a}"}, "hm.prompt: '{text.a}' is not a template"),
        ("hm", {"prompt": "{"}, "hm.prompt: '{' is not a template"),
        ("hm", {"benchmark": "okvqaa"}, "hm.benchmark: 'okvqaa' is unknown. Did you mean 'okvqa'?"),
        ("okvq", {}, "okvq.eval_file_path: '.*' is a folder.* Did you mean 'okvqa'?"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(kind, settings, message):
    with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*")):
        load(kind, DATA / (kind if kind != "okvq" else "okvqa"), **settings)


@pytest.mark.parametrize(
    "kind", ["okvqa", "vqav2", "vizwiz", "gqa", "pope", "mmbench", "scienceqa", "coco_caption", "own"]
)
def test_files_that_are_missing(kind, tmp_path):
    with pytest.raises(UserError, match=f"evaluation_datasets.{kind}.eval_file_path: '.*nowhere' does not exist"):
        load(kind, tmp_path / "nowhere")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        load(kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "file", "content", "message"),
    [
        ("hm", "dev.jsonl", f'{MEME % 0}\n{{"id": 2}}', "dev.jsonl: line 2: has no 'text'"),
        ("hm", "dev.jsonl", MEME % 2, "dev.jsonl: line 1: 'label' is 2, but"),
        ("vizwiz", "val.json", '[{"image": "", "question": "", "answers": [3]}]', "json: record 1: answers: record 1"),
        ("vizwiz", "val.json", '[{"image": "a", "question": 3}]', "json: record 1: 'question' is 3, expected text"),
        ("gqa", "testdev_balanced_questions.json", '{"7": {"question": "a"}}', "json: 7: has no 'imageId'"),
        ("scienceqa", "problems.json", "[", "problems.json is not JSON"),
        ("mme", "count.txt", "a.jpg\tIs it?\tmaybe", "count.txt: line 1: .* is not a question, a tab, and Yes or No"),
        ("mmbench", "MMBench_DEV_EN.tsv", "index\tanswer\tA\n1\tB\tx", "record 1: the index is '1', the answer 'B'"),
        ("mmbench", "MMBench_DEV_EN.tsv", b"index\xff", "MMBench_DEV_EN.tsv is not UTF-8"),
        ("mme", "count.txt", b"caf\xe9?\tIs it?\tyes", "count.txt is not UTF-8"),
        ("seedbench", "SEED-Bench.json", '{"questions": {}}', "SEED-Bench.json: 'questions' is {}, expected a list"),
    ],
)  # fmt: skip
def test_wrong_annotations(kind, file, content, message, tmp_path):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        load(kind, tmp_path)


def test_ids_that_stand_twice_in_an_annotation(tmp_path):
    rows = [{"id": 1, "img": "a", "text": "b", "label": 0}] * 2
    write_lines(tmp_path / "dev.jsonl", rows)
    with pytest.raises(UserError, match="dev.jsonl: line 2: the id '1' stands there already, in .*dev.jsonl: line 1"):
        load("hm", tmp_path)


def test_missing_pictures_are_reported_before_anything_is_asked(tmp_path):
    benchmark = load("hm", HM, img_path=str(tmp_path), limit=3)
    (tmp_path / "img").mkdir()
    for name in ("10000", "10002"):
        (tmp_path / "img" / f"{name}.png").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"dev.jsonl: line 2: '.*10001.png' is not a file \(1 of 3 pictures of hm are missing\). Set img_path",
    ):
        benchmark.check_pictures()
    (tmp_path / "img" / "10001.png").write_bytes(b"")
    benchmark.check_pictures()
    with pytest.raises(UserError, match="is not a file"):
        replace(
            benchmark, questions=[replace(benchmark.questions[0], pictures=(tmp_path / ("x" * 300),))]
        ).check_pictures()
    with pytest.raises(UserError, match="record 1: it holds no picture"):
        load("mmbench", DATA / "mmbench").check_pictures()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("benchmark=okvqaa", "x.benchmark: 'okvqaa' is not a registered benchmark. Did you mean 'okvqa'?"),
        ("limit=0", "x.limit: 0 is out of range. Set it to 1 or more."),
        ("method=ranks", "x.method: 'ranks' is unknown. Did you mean 'rank'?"),
        ("splt=a", "x.splt: "),
    ],
)  # fmt: skip
def test_config(option, message):
    with pytest.raises(UserError, match=re.escape(f"evaluation_datasets.{message}")):
        check_names(load_config(STAGE1, [f"evaluation_datasets.x.{option}"]))


def test_answers_that_cannot_be_understood_are_wrong_and_counted():
    benchmark = load("hm", HM)
    scores = benchmark.score({question.id: "maybe" for question in benchmark.questions})
    assert (scores.value, scores.unparsed, scores.json()["unparsed"]) == (0, 12, 12)
    assert json.dumps(scores.json())
