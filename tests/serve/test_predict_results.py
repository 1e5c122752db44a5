"""Where `minigpt4 predict` writes: runs that are ended and continue, files of others, disks that are full."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from minigpt4.inference.results import Results
from minigpt4.serve.questions import questions_about
from tests.serve.predicting import COUNT, EXAMPLES, SCENES, lines, write
from tests.waiting import wait_for

ANSWER = '{"id": "x", "text": "?", "answer": "y", "finish": "stop", "new_tokens": 2}\n'


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 5, 40, 4, None])
def test_a_file_that_was_left_half_written_is_continued(cut, predict, mixed, tmp_path, monkeypatch, tiny):
    """Cut off at the end of the second line and some bytes behind; None: after all lines."""
    whole, part = tmp_path / "whole.jsonl", tmp_path / "deep" / "part.jsonl"
    arguments = ["--input", mixed, "--text", COUNT, "--batch-size", 2]
    assert predict(*arguments, "--output", whole)[:2] == (1, "")
    raw = whole.read_bytes().split(b"\n")
    part.parent.mkdir()
    part.write_bytes(whole.read_bytes() if cut is None else b"\n".join([*raw[:2], raw[2][:cut]]))
    asked, answer = [], tiny.answer
    monkeypatch.setattr(tiny, "answer", lambda requests: asked.append(len(requests)) or answer(requests))
    assert predict(*arguments, "--output", part)[0] == 1
    assert part.read_bytes() == whole.read_bytes()
    assert sum(asked) == (1 if cut is None else 5)  # "long" fails in the model


@pytest.mark.slow
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


@pytest.mark.slow
def test_nothing_is_loaded_when_all_is_answered(predict, tmp_path, monkeypatch):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    assert predict(*arguments)[0] == 0
    monkeypatch.setattr("minigpt4.inference.loading.load_engine", lambda *_: 1 / 0)
    message = f"4 of 4 questions have answers in '{arguments[-1]}'; they stay, whatever this run's model and options\n"
    assert predict(*arguments, "--num-beams", "2") == (0, "", message)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_a_later_run_continues(predict, tmp_path):
    arguments = ["--image", EXAMPLES, "--text", COUNT, "--batch-size", 1]
    output, whole = tmp_path / "out.jsonl", predict(*arguments)[1]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2 + 20, limits[1]))  # bytes that a file may have
    try:
        code, _, err = predict(*arguments, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cure = "Make room, and run it again: it continues there."
    assert (code, err) == (2, f"error: --output: '{output}': File too large. {cure}\n")
    assert predict(*arguments, "--output", output)[2].startswith("2 of 4 questions have answers")
    assert output.read_text() == whole


@pytest.mark.slow
def test_stdout_that_is_full_or_closed_is_one_line(predict, monkeypatch, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert predict(*arguments)[::2] == (2, "error: stdout: can't be written (No space left on device). "
                                            "Connect it to another file.\n")  # fmt: skip
    monkeypatch.setattr(sys, "stdout", None)
    assert predict(*arguments)[2].startswith("error: stdout: is closed.")
    assert predict(*arguments, "--output", tmp_path / "out.jsonl")[0] == 0


@pytest.mark.slow
def test_two_runs_do_not_write_to_one_file(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    link = tmp_path / "link.jsonl"
    link.symlink_to(arguments[-1])
    with Results(arguments[-1], questions_about([str(SCENES[0])], COUNT)):
        for name in (arguments[-1], link):
            code, _, err = predict(*arguments[:-1], name)
            cure = "Wait until it ends, or name another."
            assert (code, err) == (2, f"error: --output: another run writes to '{name}'. {cure}\n")
    assert predict(*arguments)[0] == predict(*arguments[:-1], link)[0] == 0


@pytest.mark.slow
def test_the_output_may_be_a_link_but_no_device(predict, tmp_path):
    link, file, device = (tmp_path / name for name in ("link.jsonl", "out.jsonl", "pipe"))
    link.symlink_to(file)
    assert predict("--image", SCENES[1], SCENES[0], "--text", COUNT, "--output", link)[0] == 0
    assert link.is_symlink() and len(lines(file.read_text())) == 2
    os.mkfifo(device)
    code, _, err = predict("--image", SCENES[0], "--text", COUNT, "--output", device)
    assert code == 2 and err.endswith(f"--output: '{device}': it is not a regular file. Name another file.\n")
    assert device.is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("my notes\n", "line 1 of '{}' is not an answer of an earlier run. Name another file."),
        ("my notes", "its end of '{}' is not an answer of an earlier run"),
        (ANSWER, "line 1 of '{}' answers 'x', which is now another question, or none"),
        (ANSWER.replace('"x"', json.dumps(str(SCENES[0]))), "which is now another question"),
        ('{"id": "x", "text": "?"}\n', "line 1 of '{}' is not an answer of an earlier run"),
        ('{"id": "x", "text": "?"}', "its end of '{}' is not an answer of an earlier run"),
        ('{"id": "x", "text": "?", "answer": "y"}\n', "line 1 of '{}' is not an answer of an earlier run"),
        ('{"id": "x", "image": "y.jpg", "error": "blurred"}\n', "line 1 of '{}' is not an answer of an earlier run"),
        ('{"id": "x", "text": "?", "error": 3}\n', "line 1 of '{}' is not an answer of an earlier run"),
        (ANSWER.replace('"x"', "[1]"), "line 1 of '{}' is not an answer of an earlier run"),
        ("[" * 100_000, "its end of '{}' is not an answer of an earlier run"),
        (None, "is not a regular file"),
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


@pytest.mark.slow
def test_a_question_that_lost_its_picture_is_another_one(predict, tmp_path):
    file, output = tmp_path / "q.jsonl", tmp_path / "out.jsonl"
    write(file, [{"id": "a", "image": str(SCENES[0]), "text": COUNT}])
    assert predict("--input", file, "--output", output)[0] == 0
    write(file, [{"id": "a", "text": COUNT}])
    assert "line 1 of" in predict("--input", file, "--output", output)[2]


@pytest.mark.slow
def test_an_answer_that_lacks_only_its_line_break_is_kept(predict, tmp_path):
    arguments = ["--image", SCENES[0], "--text", COUNT, "--output", tmp_path / "out.jsonl"]
    predict(*arguments)
    whole = arguments[-1].read_bytes()
    arguments[-1].write_bytes(whole.rstrip())
    assert predict(*arguments)[2].startswith("1 of 1 questions have answers") and arguments[-1].read_bytes() == whole


@pytest.mark.slow
def test_killed_in_mid_run_it_continues_to_the_same_file(predict, tmp_path):
    records = [{"id": i, "image": str(SCENES[i % 4]), "text": COUNT} for i in range(12)]
    records[1]["image"], records[6]["image"] = "gone.jpg", "scene.jpg"
    scene, whole, part = (tmp_path / name for name in ("scene.jpg", "whole.jsonl", "part.jsonl"))
    arguments = ["--input", write(tmp_path / "in.jsonl", records)]
    scene.write_bytes(SCENES[0].read_bytes())
    assert predict(*arguments, "--output", whole)[0] == 1

    scene.unlink()
    os.mkfifo(scene)  # there the run waits
    command = [sys.executable, "-c", "from minigpt4.cli import main; main()", "predict", *arguments]
    run = subprocess.Popen([*command, "--output", part, "--batch-size", "2"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") == 6)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert part.read_bytes().count(b"\n") == 6

    scene.unlink()
    scene.write_bytes(SCENES[0].read_bytes())
    with part.open("ab") as file:
        file.write(whole.read_bytes().split(b"\n")[6][:30])  # as if it had been writing
    assert predict(*arguments, "--output", part, "--batch-size", 5)[0] == 1
    assert part.read_bytes() == whole.read_bytes()
