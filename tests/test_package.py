"""The wheel, built from the source distribution and unpacked, works in an empty folder without the repository."""

import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.serve.predicting import COUNT, lines
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[1]
SOURCES = ("minigpt4", "train_configs", "eval_configs", "prompts")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def run(folder: Path, *command: str | Path, input: str = "", **environment: str) -> str:
    """Runs a command in a folder, with nothing of the repository in the path; returns its stdout."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    environment = own | environment
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, input=input
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def files(folder: Path, parts: tuple[str, ...]) -> dict[str, bytes]:
    """{path: content} below some folders of a folder."""
    found = [file for part in parts for file in (folder / part).rglob("*") if file.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in found if "__pycache__" not in f.parts}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel. It is built from a copy: a build leaves files where it is made."""
    folder = tmp_path_factory.mktemp("package")
    for name, content in files(ROOT, SOURCES).items():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes(content)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    run(folder / "source", sys.executable, "-c", BUILD, folder)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--disable-pip-version-check")
    run(folder, sys.executable, "-m", "pip", "wheel", *offline, *folder.glob("*.tar.gz"))
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def installed(site, tmp_path) -> Callable[..., str]:
    """Runs `python -m minigpt4` of the wheel in an empty folder."""
    (tmp_path / "empty").mkdir()
    command = (sys.executable, "-m", "minigpt4")
    return lambda *words, **more: run(tmp_path / "empty", *command, *words, PYTHONPATH=str(site), **more)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_folders_of_the_top_level(site):
    ours = files(ROOT, SOURCES)
    inside = {name if name.startswith("minigpt4/") else f"minigpt4/{name}": ours[name] for name in ours}
    assert files(site, ("minigpt4",)) == inside


@pytest.mark.slow
def test_all_commands_work_in_an_empty_folder(installed, site, tmp_path):
    folder = tmp_path / "empty"
    where = "import minigpt4; print(minigpt4.__file__)"
    assert run(folder, sys.executable, "-c", where, PYTHONPATH=str(site)).startswith(str(site))
    assert "minigpt4_tiny_eval  " in installed("configs")
    assert "--share" in installed("demo", "--help")
    installed("tiny", "data")
    small = ("run.max_epoch=1", "run.iters_per_epoch=2", "run.batch_size_train=4", "run.valid_splits=[]")
    own = ("model.ckpt=null", "run.output_dir=output/own")
    installed("train", "--cfg-path", "minigpt4_tiny_stage2_finetune", "--options", *small, *own)
    checkpoint = folder / "output" / "own" / "checkpoint_best"
    assert str(site) not in (checkpoint / "config.yaml").read_text()  # its model is the one of any installation

    questions = folder / "dataset" / "tiny" / "benchmark" / "benchmark.json"
    questions.write_text(json.dumps(json.loads(questions.read_text())[:4]))
    installed("evaluate", "output/own/checkpoint_best", "--options", "run.controls=[]")
    scores = json.loads((checkpoint / "evaluation" / "evaluation.json").read_text())
    assert scores["tiny_scenes"]["trained"].keys() >= {"overall"}

    scene = site / "minigpt4" / "assets" / "tiny" / "examples" / "scene1.jpg"
    assert lines(installed("predict", "--image", scene, "--text", COUNT))[0]["answer"] == "three"
    assert installed("chat", input=f":img {scene}\n{COUNT}\n") == "three\n"
    installed("configs", "--copy", "mine")
    (own,) = (folder / "mine").rglob("minigpt4_tiny_eval.yaml")
    assert lines(installed("predict", "--cfg-path", own, "--image", scene, "--text", COUNT))[0]["answer"] == "three"


@pytest.mark.slow
def test_the_api_of_the_wheel_answers(site, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minigpt4", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"answers at (http\S+)/v1", line)))
            threading.Thread(target=server.stderr.read, daemon=True).start()  # else it would wait for a reader
            asked = {"model": httpx.get(f"{address}/v1/models", timeout=LIMIT).json()["data"][0]["id"]}
            asked |= {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            answer = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=LIMIT).json()
            assert answer["usage"]["completion_tokens"] in (1, 2, 3)
        finally:
            server.terminate()
