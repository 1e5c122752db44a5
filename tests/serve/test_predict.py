"""`minigpt4 predict`: batches, files of questions, failing records, runs that are ended and go on."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minigpt4.conversation.chat import Chat
from minigpt4.conversation.pictures import Picture, Video
from minigpt4.serve.questions import questions_about
from minigpt4.serve.results import Results
from minigpt4.tools.cli import main

EXAMPLES = Path(__file__).parents[2] / "minigpt4" / "assets" / "tiny" / "examples"
SCENES = sorted(EXAMPLES.glob("*.jpg"))
DESCRIBE = "Describe this image in detail."
COUNT = "How many digits are there?"
ANSWER = '{"id": "x", "text": "?", "answer": "y", "finish": "stop", "new_tokens": 2}\n'


@pytest.fixture
def predict(monkeypatch, capsys, tiny):
    """Runs the command with a model that is loaded already; returns exit status, stdout and stderr."""
    monkeypatch.setattr("minigpt4.serve.predict.load_model", lambda *_: tiny)

    def predict(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minigpt4", "predict", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return predict


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def write(file: Path, records: list) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture
def mixed(tmp_path, video) -> Path:
    """Records of all kinds, six good and six bad ones."""
    (tmp_path / "scene.jpg").write_bytes(SCENES[1].read_bytes())
    (tmp_path / "cut.jpg").write_bytes(SCENES[1].read_bytes()[:1500])
    return write(
        tmp_path / "questions.jsonl",
        [
            {"id": "one", "image": "scene.jpg", "text": DESCRIBE},
            {"id": "url", "image": Picture.from_file(SCENES[0]).to_url(), "text": COUNT},
            {"id": "gone", "image": "gone.jpg", "text": COUNT},
            {"id": 7, "images": [str(SCENES[2]), "scene.jpg"], "text": COUNT, "answer": "not read"},
            {"id": "cut", "image": "cut.jpg", "text": COUNT},
            {"id": "clip", "video": str(video), "text": COUNT},
            {"image": str(SCENES[3])},
            "no object",
            {"id": "list", "image": [3], "text": COUNT},
            {"id": "number", "image": "scene.jpg", "text": 3},
            {"id": "long", "image": "scene.jpg", "text": "digit " * 3000},
            {"id": "words", "text": "Is there a <ImageHere> yellow digit? é"},
        ],
    )


def test_one_image(predict):
    code, out, err = predict("--image", SCENES[0], "--text", DESCRIBE)
    assert code == 0 and err == ""
    (result,) = lines(out)
    assert result["id"] == str(SCENES[0]) and result["images"] == [str(SCENES[0])] and result["text"] == DESCRIBE
    assert result["answer"].startswith("The image shows three handwritten digits.") and result["finish"] == "stop"


def test_many_images_and_folders(predict, tmp_path):
    code, out, _ = predict("--image", SCENES[1], SCENES[0], "--image", SCENES[2], "--text", COUNT)
    assert code == 0 and [r["id"] for r in lines(out)] == [str(SCENES[i]) for i in (1, 0, 2)]
    code, out, _ = predict("--image", EXAMPLES, "--text", COUNT)
    assert code == 0 and [r["answer"] for r in lines(out)] == ["three", "three", "two", "one"]


def test_of_a_folder_only_pictures_are_asked_about(predict, tmp_path):
    (tmp_path / "scene.JPG").write_bytes(SCENES[0].read_bytes())
    (tmp_path / "sub.jpg").mkdir()
    for name in ("doc.pdf", "plot.eps", "notes.txt"):  # Pillow writes or knows the first two
        (tmp_path / name).write_text("no picture")
    code, out, _ = predict("--image", tmp_path, "--text", COUNT)
    assert code == 0 and [r["id"] for r in lines(out)] == [str(tmp_path / "scene.JPG")]


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
        "words": ["Is there a  yellow digit? é"],
    }
    answers = {result["id"]: result.get("answer") for result in lines(alone)}
    for name, parts in asked.items():
        assert answers[name] == Chat(*tiny).answer(parts, **options)


def test_failing_records_name_themselves(predict, mixed):
    code, out, err = predict("--input", mixed, "--batch-size", 4, "--text", COUNT)
    assert code == 1 and err.startswith("6 of 12 questions failed")
    failed = {result["id"]: result["error"] for result in lines(out) if "error" in result}
    assert failed.keys() == {"gone", "cut", "#7", "list", "number", "long"}
    assert "gone.jpg: the picture can't be read: No such file" in failed["gone"]
    assert "cut.jpg: the picture can't be read: image file is truncated" in failed["cut"]
    assert "the record is no object" in failed["#7"]
    assert "must be file names" in failed["list"] and '"text" is missing or no string' in failed["number"]
    assert "longer than the LLM can read" in failed["long"]
    url = next(result for result in lines(out) if result["id"] == "url")
    assert url["answer"] == "three" and url["images"][0].startswith("data:") and len(url["images"][0]) < 30


def test_a_failing_model_fails_the_row_it_fails_at(predict, tiny, monkeypatch):
    encode = tiny[0].encode_img
    bad = tiny[1](Picture.from_file(SCENES[1]).image)

    def fail(pixels):
        if any(bad.equal(own) for own in pixels):
            raise RuntimeError("out of memory\nmore")
        return encode(pixels)

    monkeypatch.setattr(tiny[0], "encode_img", fail)
    code, out, _ = predict("--image", EXAMPLES, "--text", COUNT)
    assert code == 1
    assert [r.get("answer", r.get("error")) for r in lines(out)] == [
        "three",
        "RuntimeError: out of memory",
        "two",
        "one",
    ]


@pytest.mark.parametrize("cut", [0, 5, 40, 4, None])
def test_a_file_that_was_left_half_written_is_gone_on_with(cut, predict, mixed, tmp_path, monkeypatch, tiny):
    """Cut off at the end of the second line and some bytes behind; None: after all lines."""
    whole, part = tmp_path / "whole.jsonl", tmp_path / "deep" / "part.jsonl"
    arguments = ["--input", mixed, "--text", COUNT, "--batch-size", 2]
    assert predict(*arguments, "--output", whole)[:2] == (1, "")
    raw = whole.read_bytes().split(b"\n")
    part.parent.mkdir()
    part.write_bytes(whole.read_bytes() if cut is None else b"\n".join([*raw[:2], raw[2][:cut]]))
    asked, generate = [], tiny[0].generate
    monkeypatch.setattr(tiny[0], "generate", lambda i, t, **o: asked.append(len(t)) or generate(i, t, **o))
    assert predict(*arguments, "--output", part)[0] == 1
    assert part.read_bytes() == whole.read_bytes()
    assert sum(asked) == (1 if cut is None else 5)  # "long" fails in the model


def test_what_failed_is_asked_again_and_lands_in_its_place(predict, mixed, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = ["--input", mixed, "--text", COUNT, "--output", output]
    predict(*arguments)
    before = lines(output.read_text())
    (tmp_path / "gone.jpg").write_bytes(SCENES[3].read_bytes())
    assert "\n5 of 12 questions failed" in predict(*arguments)[2]
    after = lines(output.read_text())
    assert after[2] == {"id": "gone", "images": ["gone.jpg"], "text": COUNT} | {
        "answer": "one",
        "finish": "stop",
        "new_tokens": 2,
    }
    assert [r for r in after if r["id"] != "gone"] == [r for r in before if r["id"] != "gone"]


def test_nothing_is_loaded_when_all_is_answered(predict, tmp_path, monkeypatch):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    assert predict(*arguments)[0] == 0
    monkeypatch.setattr("minigpt4.serve.predict.load_model", lambda *_: 1 / 0)
    told = f"4 of 4 questions have answers in '{arguments[-1]}'; they stay, whatever this run's model and options\n"
    assert predict(*arguments, "--num-beams", "2") == (0, "", told)


def test_a_full_disk_is_one_line_and_a_later_run_goes_on(predict, tmp_path):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--batch-size", 1]
    output, whole = tmp_path / "out.jsonl", predict(*arguments)[1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2 + 20, limits[1]))  # bytes that a file may have
    try:
        code, _, err = predict(*arguments, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cure = "Make room, and run it again: it goes on there."
    assert (code, err) == (2, f"error: --output: '{output}': File too large. {cure}\n")
    assert predict(*arguments, "--output", output)[2].startswith("2 of 4 questions have answers")
    assert output.read_text() == whole


def test_stdout_that_is_full_or_closed_is_one_line(predict, monkeypatch, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert predict(*arguments)[::2] == (2, "error: stdout: can't be written (No space left on device). "
                                            "Connect it to another file.\n")  # fmt: skip
    monkeypatch.setattr(sys, "stdout", None)
    assert predict(*arguments)[2].startswith("error: stdout: is closed.")
    assert predict(*arguments, "--output", tmp_path / "out.jsonl")[0] == 0


def test_two_runs_do_not_write_to_one_file(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    with Results(arguments[-1], questions_about([str(SCENES[0])], COUNT)):
        code, _, err = predict(*arguments)
        told = f"error: --output: another run writes to '{arguments[-1]}'. Wait for its end, or name another file.\n"
        assert (code, err) == (2, told)
    assert predict(*arguments)[0] == 0


def test_the_output_may_be_a_link_but_no_device(predict, tmp_path):
    link, file, device = (tmp_path / name for name in ("link.jsonl", "out.jsonl", "pipe"))
    link.symlink_to(file)
    assert predict("--image", SCENES[1], SCENES[0], "--text", COUNT, "--output", link)[0] == 0
    assert link.is_symlink() and len(lines(file.read_text())) == 2
    os.mkfifo(device)
    code, _, err = predict("--image", SCENES[0], "--text", COUNT, "--output", device)
    assert code == 2 and err.endswith(f"--output: '{device}': it is no regular file. Name another file.\n")
    assert device.is_fifo()


def test_a_bar_shows_how_far_it_is_where_it_is_in_nobodys_way(predict, tmp_path, monkeypatch):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--batch-size", 2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "4/4" in predict(*arguments)[2]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # where the answers go
    assert predict(*arguments)[2] == ""
    assert "4/4" in predict(*arguments, "--output", tmp_path / "out.jsonl")[2]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("my notes\n", "line 1 of '{}' is no answer that predict wrote. Name another file."),
        ("my notes", "its end of '{}' is no answer that predict wrote"),
        (ANSWER, "line 1 of '{}' answers 'x', which is asked otherwise now, or not at all"),
        (ANSWER.replace('"x"', json.dumps(str(SCENES[0]))), "which is asked otherwise now"),
        ('{"id": "x", "text": "?"}\n', "line 1 of '{}' is no answer that predict wrote"),
        ('{"id": "x", "text": "?"}', "its end of '{}' is no answer that predict wrote"),
        ('{"id": "x", "text": "?", "answer": "y"}\n', "line 1 of '{}' is no answer that predict wrote"),
        ('{"id": "x", "image": "y.jpg", "error": "blurred"}\n', "line 1 of '{}' is no answer that predict wrote"),
        ('{"id": "x", "text": "?", "error": 3}\n', "line 1 of '{}' is no answer that predict wrote"),
        (ANSWER.replace('"x"', "[1]"), "line 1 of '{}' is no answer that predict wrote"),
        ("[" * 100_000, "its end of '{}' is no answer that predict wrote"),
        (None, "is no regular file"),
    ],
)
def test_a_file_of_others_is_left_alone(content, complaint, predict, tmp_path):
    output = tmp_path / "notes.txt"
    output.mkdir() if content is None else output.write_text(content)
    code, _, err = predict("--image", SCENES[0], "--text", COUNT, "--output", output)
    assert code == 2 and complaint.format(output) in err
    assert output.is_dir() or output.read_text() == content


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_questions_are_no_place_for_answers(link, predict, tmp_path):
    file = output = write(tmp_path / "q.jsonl", [{"id": "a", "text": "hello"}, {"id": "b", "text": "?", "error": "x"}])
    if link:
        link(file, output := tmp_path / "link.jsonl")
    before = file.read_bytes()
    code, _, err = predict("--input", file, "--output", output)
    assert (code, err) == (2, f"error: --output: '{output}' is the file of --input. Name another file.\n")
    assert file.read_bytes() == before


def test_a_question_that_lost_its_picture_is_another_one(predict, tmp_path):
    file, output = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    write(file, [{"id": "a", "image": str(SCENES[0]), "text": COUNT}])
    assert predict("--input", file, "--output", output)[0] == 0
    write(file, [{"id": "a", "text": COUNT}])
    assert "line 1 of" in predict("--input", file, "--output", output)[2]


def test_an_answer_that_lacks_only_its_line_break_is_kept(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    predict(*arguments)
    whole = arguments[-1].read_bytes()
    arguments[-1].write_bytes(whole.rstrip())
    assert predict(*arguments)[2].startswith("1 of 1 questions have answers") and arguments[-1].read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--image", "x.jpg"], "--text: is missing"),
        (["--image", SCENES[0], SCENES[0], "--text", "?"], "stands there 2 times. Name it once."),
        (["--image", "{tmp}", "--text", "?"], "the folder '{tmp}' holds no picture"),
        (["--input", "{tmp}/none.jsonl"], "--input: '{tmp}/none.jsonl' is no file"),
        (["--input", "{tmp}/twice.jsonl"], "--input: 'a' stands there 2 times. Give each its own id."),
        (["--input", "{tmp}/empty.jsonl"], "holds no records. Write a list of them, or one a line.\n"),
        (["--input", "{tmp}/broken.jsonl"], "line 2 is not JSON"),
        (["--image", "x.jpg", "--text", "\udcff?"], "--text: holds '\\udcff', which is no character"),
        (["--image", "x.jpg", "--text", "?", "--batch-size", "0"], "--batch-size: 0 is out of range"),
        (["--image", "x.jpg", "--text", "?", "--top-p", "2"], "top_p: 2.0 is out of range"),
        (["--image", "x.jpg", "--text", "?", "--temperature", "2", "--seed", "1"], "--temperature, --seed: without"),
        (["--image", "x.jpg", "--text", "?", "--image-folder", "y"], "--image-folder: has no effect"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_loaded(arguments, complaint, predict, tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt4.serve.predict.load_model", lambda *_: 1 / 0)
    write(tmp_path / "twice.jsonl", [{"id": "a", "text": "?"}] * 2)
    write(tmp_path / "empty.jsonl", [])
    (tmp_path / "broken.jsonl").write_text('{"text": "?"}\n{"text"')
    code, _, err = predict(*(str(a).format(tmp=tmp_path) for a in arguments))
    assert code == 2 and err.count("\n") == 1 and complaint.format(tmp=tmp_path) in err


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
    assert bad == {"id": "b", "error": "\"text\" holds '\\ud800', which is no character. Take it out."}
    assert "data: URL" in url["error"]


def test_timing(predict):
    code, _, err = predict("--image", EXAMPLES, "--text", COUNT, "--timing")
    pattern = r"loading \d+\.\d\d s; 4 answers in (\S+) s, \S+ s of them .*: (\S+) s per answer, (\S+) images/s, "
    total, each, images = map(float, re.match(pattern, err).groups())
    assert each == pytest.approx(total / 4, abs=0.01) and images == pytest.approx(4 / total, rel=0.2)


def test_timing_without_an_answer(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl", "--timing"]
    predict(*arguments)
    assert predict(*arguments)[2].endswith("\nloading 0.00 s; no answers in 0.00 s\n")


def test_killed_in_mid_run_it_goes_on_to_the_same_file(predict, tmp_path):
    records = [{"id": i, "image": str(SCENES[i % 4]), "text": COUNT} for i in range(12)]
    records[1]["image"], records[6]["image"] = "gone.jpg", "scene.jpg"
    scene, whole, part = (tmp_path / name for name in ("scene.jpg", "whole.jsonl", "part.jsonl"))
    arguments = ["--input", write(tmp_path / "in.jsonl", records)]
    scene.write_bytes(SCENES[0].read_bytes())
    assert predict(*arguments, "--output", whole)[0] == 1

    scene.unlink()
    os.mkfifo(scene)  # there the run waits
    command = [sys.executable, "-c", "from minigpt4.tools.cli import main; main()", "predict", *arguments]
    run = subprocess.Popen([*command, "--output", part, "--batch-size", "2"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") == 6) and time.monotonic() < end:
        time.sleep(0.05)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert part.read_bytes().count(b"\n") == 6

    scene.unlink()
    scene.write_bytes(SCENES[0].read_bytes())
    with part.open("ab") as file:
        file.write(whole.read_bytes().split(b"\n")[6][:30])  # as if it had been writing
    assert predict(*arguments, "--output", part, "--batch-size", 5)[0] == 1
    assert part.read_bytes() == whole.read_bytes()
