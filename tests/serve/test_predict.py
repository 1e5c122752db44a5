"""`minigpt4 predict`: batches, files of questions, failing records, arguments, how long it took."""

import os
import re
import sys

import pytest

from minigpt4.inference.chat import Chat
from minigpt4.inference.pictures import Picture, Video
from tests.serve.predicting import COUNT, DESCRIBE, EXAMPLES, SCENES, lines, write


@pytest.mark.slow
def test_one_image(predict):
    code, out, err = predict("--image", SCENES[0], "--text", DESCRIBE)
    assert code == 0 and err == ""
    (result,) = lines(out)
    assert result["id"] == str(SCENES[0]) and result["images"] == [str(SCENES[0])] and result["text"] == DESCRIBE
    assert result["answer"].startswith("The image shows three handwritten digits.") and result["finish"] == "stop"


@pytest.mark.slow
def test_many_images_and_folders(predict, tmp_path):
    code, out, _ = predict("--image", SCENES[1], SCENES[0], "--image", SCENES[2], "--text", COUNT)
    assert code == 0 and [r["id"] for r in lines(out)] == [str(SCENES[i]) for i in (1, 0, 2)]
    code, out, _ = predict("--image", EXAMPLES, "--text", COUNT)
    assert code == 0 and [r["answer"] for r in lines(out)] == ["three", "three", "two", "one"]


@pytest.mark.slow
def test_of_a_folder_only_pictures_are_asked_about(predict, tmp_path):
    (tmp_path / "scene.JPG").write_bytes(SCENES[0].read_bytes())
    (tmp_path / "sub.jpg").mkdir()
    for name in ("doc.pdf", "plot.eps", "notes.txt"):  # Pillow writes or knows the first two
        (tmp_path / name).write_text("no picture")
    code, out, _ = predict("--image", tmp_path, "--text", COUNT)
    assert code == 0 and [r["id"] for r in lines(out)] == [str(tmp_path / "scene.JPG")]


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [[], ["--do-sample", "--temperature", "2", "--seed", "5"], ["--num-beams", "2"]])
def test_batches_answer_as_a_chat_about_each_alone(decoding, predict, mixed, tiny, video):
    def run(size: int) -> str:
        return predict("--input", mixed, "--text", COUNT, "--batch-size", size, "--max-new-tokens", 12, *decoding)[1]

    alone = run(1)
    assert run(5) == alone
    options = {"max_new_tokens": 12}
    if "--seed" in decoding:
        options |= {"do_sample": True, "temperature": 2.0, "seed": 5}
    elif decoding:
        options["num_beams"] = 2
    asked = {
        "one": [Picture.from_file(SCENES[1]), DESCRIBE],
        7: [Picture.from_file(SCENES[2]), Picture.from_file(SCENES[1]), COUNT],
        "clip": [Video(video), COUNT],
        "#6": [Picture.from_file(SCENES[3]), COUNT],
        "words": ["Is there a <ImageHere> yellow digit? é"],
    }
    answers = {result["id"]: result.get("answer") for result in lines(alone)}
    for name, parts in asked.items():
        assert answers[name] == Chat(tiny).answer(parts, **options)


@pytest.mark.slow
def test_failing_records_name_themselves(predict, mixed):
    code, out, err = predict("--input", mixed, "--batch-size", 4, "--text", COUNT)
    assert code == 1 and err.startswith("6 of 12 questions failed")
    failed = {result["id"]: result["error"] for result in lines(out) if "error" in result}
    assert failed.keys() == {"gone", "cut", "#7", "list", "number", "long"}
    assert "gone.jpg can't be read as a picture: No such file" in failed["gone"]
    assert "cut.jpg can't be read as a picture: image file is truncated" in failed["cut"]
    assert "the record is not an object" in failed["#7"]
    assert "must be file names" in failed["list"] and '"text" is missing or no string' in failed["number"]
    assert "longer than the LLM can read" in failed["long"]
    url = next(result for result in lines(out) if result["id"] == "url")
    assert url["answer"] == "three" and url["images"][0].startswith("data:") and len(url["images"][0]) < 30


@pytest.mark.slow
def test_a_failing_model_fails_the_row_it_fails_at(predict, tiny, monkeypatch):
    encode = tiny.model.encode_img
    bad = tiny.processor(Picture.from_file(SCENES[1]).image)

    def fail(pixels):
        if any(bad.equal(own) for own in pixels):
            raise RuntimeError("out of memory\nmore")
        return encode(pixels)

    monkeypatch.setattr(tiny.model, "encode_img", fail)
    code, out, _ = predict("--image", EXAMPLES, "--text", COUNT)
    assert code == 1
    assert [r.get("answer", r.get("error")) for r in lines(out)] == [
        "three",
        "RuntimeError: out of memory",
        "two",
        "one",
    ]


@pytest.mark.slow
def test_a_bar_shows_how_far_it_is_where_it_is_in_nobodys_way(predict, tmp_path, monkeypatch):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--batch-size", 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "4/4" in predict(*arguments)[2]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # where the answers go
    assert predict(*arguments)[2] == ""
    assert "4/4" in predict(*arguments, "--output", tmp_path / "out.jsonl")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "x.jpg"], "--text: is missing"),
        (["--image", SCENES[0], SCENES[0], "--text", "?"], "stands there 2 times. Name it once."),
        (["--image", "{tmp}", "--text", "?"], "the folder '{tmp}' holds no picture"),
        (["--input", "{tmp}/none.jsonl"], "--input: '{tmp}/none.jsonl' is not a file"),
        (["--input", "{tmp}/twice.jsonl"], "--input: 'a' stands there 2 times. Give each its own id."),
        (["--input", "{tmp}/empty.jsonl"], "holds no records. Write a list of them, or one a line.\n"),
        (["--input", "{tmp}/broken.jsonl"], "line 2 is not JSON"),
        (["--image", "x.jpg", "--text", "\udcff?"], "--text: holds '\\udcff', which is not a character"),
        (["--image", "x.jpg", "--text", "?", "--batch-size", "0"], "--batch-size: 0 is out of range"),
        (["--image", "x.jpg", "--text", "?", "--top-p", "2"], "top_p: 2.0 is out of range"),
        (["--image", "x.jpg", "--text", "?", "--temperature", "2", "--seed", "1"], "--temperature, --seed: without"),
        (["--image", "x.jpg", "--text", "?", "--image-folder", "y"], "--image-folder: has no effect"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_loaded(arguments, complaint, predict, tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: 1 / 0)
    write(tmp_path / "twice.jsonl", [{"id": "a", "text": "?"}] * 2)
    write(tmp_path / "empty.jsonl", [])
    (tmp_path / "broken.jsonl").write_text('{"text": "?"}\n{"text"')
    code, _, err = predict(*(str(a).format(tmp=tmp_path) for a in arguments))
    assert code == 2 and err.count("\n") == 1 and complaint.format(tmp=tmp_path) in err


@pytest.mark.slow
def test_file_names_that_are_no_text(predict, tmp_path):
    folder = os.fsencode(tmp_path / "bad")
    os.mkdir(folder)
    with open(folder + b"/\xff\xc3\xa9.jpg", "wb") as file:
        file.write(SCENES[0].read_bytes())
    arguments = ["--image", tmp_path / "bad", "--text", COUNT]
    for _ in range(2):
        assert predict(*arguments, "--output", tmp_path / "out.jsonl")[0] == 0
    (result,) = lines((tmp_path / "out.jsonl").read_text())
    assert os.fsencode(result["id"]).endswith(b"\xff\xc3\xa9.jpg") and result["answer"] == "three"
    assert predict(*arguments)[1] == (tmp_path / "out.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 8])
def test_half_a_character_fails_its_own_record(size, predict, tmp_path):
    records = [{"id": "\ud801", "text": COUNT}, {"id": "b", "text": "\ud800 hi"}, {"id": "c", "text": COUNT}]
    records.append({"id": "d", "image": "data:\ud800", "text": COUNT})
    arguments = ["--input", write(tmp_path / "in.jsonl", records), "--batch-size", size]
    for _ in range(2):
        code, _, err = predict(*arguments, "--output", tmp_path / "out.jsonl")
        assert code == 1 and err.endswith('2 of 4 questions failed; the lines with "error" say why\n')
    assert predict(*arguments)[1] == (tmp_path / "out.jsonl").read_text()
    good, bad, also_good, url = lines((tmp_path / "out.jsonl").read_text())
    assert good["id"] == "\ud801" and "answer" in good and "answer" in also_good
    assert bad == {"id": "b", "error": "\"text\" holds '\\ud800', which is not a character. Take it out."}
    assert "data: URL" in url["error"]


@pytest.mark.slow
def test_timing(predict):
    code, _, err = predict("--image", EXAMPLES, "--text", COUNT, "--timing")
    pattern = r"loading \d+\.\d\d s; 4 answers in (\S+) s, \S+ s of them .*: (\S+) s per answer, (\S+) images/s, "
    total, each, images = map(float, re.match(pattern, err).groups())
    assert each == pytest.approx(total / 4, abs=0.01) and images == pytest.approx(4 / total, rel=0.2)


@pytest.mark.slow
def test_timing_without_an_answer(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl", "--timing"]
    predict(*arguments)
    assert predict(*arguments)[2].endswith("\nloading 0.00 s; no answers in 0.00 s\n")
