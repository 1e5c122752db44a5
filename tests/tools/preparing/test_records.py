"""`minigpt4 prepare-data llava | vqav2 | coco`: records that `validate-data` has nothing to say against."""

import json
from pathlib import Path

import pytest
from PIL import Image

FIXTURES = Path(__file__).parents[2] / "fixtures" / "evaluation"


@pytest.fixture
def records(tmp_path, minigpt4):
    """Runs a command that writes records, makes their pictures, and has `validate-data` read them."""

    def run(*command) -> tuple[list[dict], str]:
        code, out, _ = minigpt4("prepare-data", *command, "--out", tmp_path / "out.json")
        assert code == 0
        found = json.loads((tmp_path / "out.json").read_text())
        (tmp_path / "image").mkdir()
        for record in found:
            if "image" in record:
                file = tmp_path / "image" / record["image"]
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(file)
        code, text, _ = minigpt4("validate-data", tmp_path / "out.json")
        assert code == 0 and text.endswith("no problems\n")
        return found, out

    return run


def write(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content))
    return file


def test_llava(records, tmp_path):
    turns = [("human", "What is it?\n<image>"), ("gpt", "A dog."), ("human", "Why?"), ("gpt", "So.")]
    good = {"id": "000000033471", "image": "coco/1.jpg"}
    good["conversations"] = [{"from": who, "value": text} for who, text in turns]
    plain = {"id": "p", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}
    empty = {"id": "e", "conversations": []}
    found, out = records("llava", write(tmp_path / "llava.json", [good, plain, empty]))
    assert found == [
        {
            "id": "000000033471",
            "image": "coco/1.jpg",
            "instruction": ["What is it?\n<image>", "Why?"],
            "output": ["A dog.", "So."],
        },
        {"id": "p", "instruction": ["Hi."], "output": ["Hello."]},
    ]
    assert "2 records" in out and "1 x left out: turns, such as record e: no turns\n" in out


@pytest.mark.parametrize("prompt", [None, "[vqa] {question}"])
def test_vqav2(prompt, records):
    folder = FIXTURES / "okvqa"
    files = [folder / "OpenEnded_mscoco_val2014_questions_clean.json", folder / "mscoco_val2014_annotations_clean.json"]
    found, _ = records("vqav2", *files, *(["--prompt", prompt] if prompt else []))
    asked = json.loads(files[0].read_text())["questions"]
    assert len(found) == len(asked)
    assert found[0]["image"] == f"COCO_val2014_{asked[0]['image_id']:012d}.jpg"
    assert found[0]["instruction"] == (prompt or "{question}").replace("{question}", asked[0]["question"])
    answers = {a["question_id"]: a for a in json.loads(files[1].read_text())["annotations"]}
    for record, question in zip(found, asked, strict=True):
        given = [answer["answer"] for answer in answers[question["question_id"]]["answers"]]
        assert given.count(record["output"]) == max(map(given.count, given))


def test_vqav2_of_two_splits_is_refused(tmp_path, minigpt4):
    asked = {"data_subtype": "train2014", "questions": [{"question_id": 1, "image_id": 2, "question": "What?"}]}
    files = write(tmp_path / "q.json", asked), write(tmp_path / "a.json", {"annotations": []})
    code, _, err = minigpt4("prepare-data", "vqav2", *files, "--out", tmp_path / "out.json")
    assert code == 2 and "Use files of one split" in err and not (tmp_path / "out.json").exists()


def test_coco(records, tmp_path):
    images = [{"id": 9, "file_name": "000000000009.jpg"}]
    annotations = [{"id": 5, "image_id": 9, "caption": "A dog.\n"}, {"id": 6, "image_id": 9, "caption": "A cat."}]
    annotations.append({"id": 7, "image_id": 9, "caption": " \n"})
    file = write(tmp_path / "captions_train2017.json", {"images": images, "annotations": annotations})
    found, out = records("coco", file)
    assert "1 x left out: empty caption, such as record 7: its caption holds no text\n" in out
    assert found == [
        {"id": "5", "image": "000000000009.jpg", "caption": "A dog."},
        {"id": "6", "image": "000000000009.jpg", "caption": "A cat."},
    ]


def test_coco_as_karpathy_split_it(records, tmp_path):
    rows = [{"image": "val2014/1.jpg", "caption": "A dog."}, {"image": "val2014/2.jpg", "caption": ["A", "B"]}]
    found, _ = records("coco", write(tmp_path / "coco_karpathy_train.json", rows))
    assert [(row["image"], row["caption"]) for row in found] == [
        ("val2014/1.jpg", "A dog."),
        ("val2014/2.jpg", "A"),
        ("val2014/2.jpg", "B"),
    ]


def test_lines(tmp_path, minigpt4):
    file = write(tmp_path / "x.json", [{"image": "1.jpg", "caption": "A"}, {"image": "2.jpg", "caption": "B"}])
    assert minigpt4("prepare-data", "coco", file, "--out", tmp_path / "out.jsonl")[0] == 0
    assert [json.loads(line)["caption"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ["A", "B"]


def test_another_format_is_named(tmp_path, minigpt4):
    file = write(tmp_path / "x.json", {"images": [], "annotations": [{"image_id": 1, "caption": "x"}]})
    code, _, err = minigpt4("prepare-data", "coco", file, "--out", tmp_path / "out.json")
    assert code == 2 and "image 1 is not among the file's images" in err
    for content in ({"a": 1}, {}):
        code, _, err = minigpt4("prepare-data", "coco", write(file, content), "--out", tmp_path / "out.json")
        assert code == 2 and "has no 'images'. Name a file of the published format" in err


def test_a_file_that_is_there_is_not_written_to(tmp_path, minigpt4):
    """It may be the one that is read."""
    turns = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    llava = write(tmp_path / "llava.json", [{"id": "a", "conversations": turns}, {"id": "b"}])
    coco = write(tmp_path / "coco.json", [{"image": "1.jpg", "caption": "A"}])
    folder = FIXTURES / "okvqa"
    vqa = [folder / "OpenEnded_mscoco_val2014_questions_clean.json", folder / "mscoco_val2014_annotations_clean.json"]
    for command, out in ((["llava", llava], llava), (["coco", coco], llava), (["vqav2", *vqa], coco)):
        before = out.read_bytes()
        code, _, err = minigpt4("prepare-data", *command, "--out", out)
        assert (code, err) == (2, f"error: --out: '{out}' is there already. Name a new file, or delete it first.\n")
        assert out.read_bytes() == before


@pytest.mark.parametrize("prompt", ["no braces", "[vqa]", "", "{foo} {question}", "{question} {}", "{question"])
def test_a_prompt_that_does_not_ask_the_question_is_refused(prompt, tmp_path, minigpt4):
    out = tmp_path / "new" / "out.json"
    code, _, err = minigpt4("prepare-data", "vqav2", "/no/q.json", "/no/a.json", "--prompt", prompt, "--out", out)
    assert code == 2 and err.startswith(f"error: --prompt: '{prompt}' must hold {{question}}") and err.count("\n") == 1
    assert not out.parent.exists()
