"""What a run leaves for its user: log.txt, TensorBoard, wandb where asked, loss.png, run_info.json; who may speak."""

import json
import os
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigpt4.common import run_info
from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, RunConfig
from minigpt4.runners import log as run_log
from minigpt4.runners.log import RunLog, plot_loss
from minigpt4.runners.runner_base import RunnerBase
from tests.runners.toy import toy_runner
from tests.waiting import wait_for


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def log_of(folder: Path, resumed: int = 0, **run) -> RunLog:
    return RunLog(Config(run=RunConfig(output_dir=str(folder), **run)), resumed)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_holds_what_the_log_holds(tmp_path):
    toy_runner(tmp_path, max_epoch=2, valid=True).train()
    records, board = lines(tmp_path), scalars(tmp_path)
    assert len([r for r in records if "train_loss" in r]) == 16
    shown = ("train_loss", "lr", "samples_per_s", "tokens_per_s", "data_wait", "epoch_loss", "val_loss", "seconds")
    assert board.keys() == set(shown)
    for tag, points in board.items():
        expected = [(r["step"], r[tag]) for r in records if tag in r]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-5)


def test_a_run_that_continues_takes_back_what_came_after_its_checkpoint(tmp_path):
    first = log_of(tmp_path)
    for step in range(1, 6):
        first.write(step=step, train_loss=float(step))
    first.close()
    with (tmp_path / "log.txt").open("a") as file:
        file.write('{"step": 6, "train_l')  # the power failed
    ended = int(time.time())
    wait_for(lambda: int(time.time()) > ended)  # TensorBoard's files are ordered by the second in their names
    second = log_of(tmp_path, resumed=3)
    second.write(step=4, train_loss=40.0)
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [(r["step"], r["train_loss"]) for r in lines(tmp_path)] == expected
    assert scalars(tmp_path)["train_loss"] == expected
    log_of(tmp_path).close()
    assert lines(tmp_path) == []  # a new run


def test_what_is_no_number_is_null_as_in_json(tmp_path):
    log = log_of(tmp_path)
    log.write(step=1, train_loss=1.0)
    log.write(step=2, val_loss=float("nan"), epoch_loss=float("inf"))
    log.close()
    text = (tmp_path / "log.txt").read_text().splitlines()[1]
    assert json.loads(text, parse_constant=lambda _: 1 / 0) == {"step": 2, "val_loss": None, "epoch_loss": None}
    plot_loss(tmp_path)


def test_a_crash_while_lines_are_taken_back_loses_none(tmp_path, monkeypatch):
    log_of(tmp_path).write(step=1, train_loss=1.0)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_of(tmp_path, resumed=1)
    assert len(lines(tmp_path)) == 1


def test_loss_png_shows_both_losses_and_scores(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    log = log_of(tmp_path)
    for step in (1, 2):
        log.write(step=step, train_loss=3.0 / step, lr=1.0)
    log.write(step=2, epoch=0, val_loss=2.5, **{"okvqa.overall": 61.0})
    drawn, colours = {}, set()
    plot = Axes.plot

    def note(axes, x, y, *style, label, **more):
        drawn[label] = list(zip(x, y, strict=True))
        (line,) = plot(axes, x, y, *style, label=label, **more)
        colours.add(line.get_color())
        return [line]

    monkeypatch.setattr(Axes, "plot", note)
    plot_loss(tmp_path)
    assert drawn == {"train loss": [(1, 3.0), (2, 1.5)], "val loss": [(2, 2.5)], "okvqa.overall": [(2, 61.0)]}
    assert len(colours) == 3
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (840, 480)
        assert len(image.convert("RGB").getcolors(10**6)) > 10


class FakeWandb(ModuleType):
    """Notes what a run sends."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **how):
        self.started.append(how)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.slow
def test_wandb_gets_what_the_log_gets_where_asked(wandb, tmp_path):
    toy_runner(tmp_path / "unasked", max_epoch=1).train()
    assert not wandb.started
    toy_runner(tmp_path / "asked", max_epoch=1, wandb_log=True, job_name="my run").train()
    (how,) = wandb.started
    assert (how["project"], how["name"], how["dir"]) == ("minigpt4", "my run", str(tmp_path / "asked"))
    assert how["config"]["run"]["max_epoch"] == 1
    losses = [(step, numbers["train_loss"]) for step, numbers in wandb.logged if "train_loss" in numbers]
    assert losses == [(r["step"], r["train_loss"]) for r in lines(tmp_path / "asked") if "train_loss" in r]
    assert wandb.finished == 1


def test_other_ranks_write_nothing(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "is_main", lambda: False)
    log = log_of(tmp_path, wandb_log=True)
    log.write(step=1, train_loss=1.0)
    log.close()
    assert not wandb.started and not list(tmp_path.iterdir())


def test_wandb_that_is_not_installed_is_reported_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("minigpt4.runners.runner_base.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is asked for but not installed: pip install wandb"):
        RunnerBase.check(Config(run=RunConfig(output_dir=str(tmp_path), wandb_log=True)))


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_run_info_says_what_a_run_was_made_with(tmp_path, monkeypatch):
    """The commit of the code, not that of the folder in which the run was started."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "log.py").write_text("1")
    monkeypatch.setattr(run_info, "__file__", str(code / "log.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg-path", "x.yaml"])

    def info() -> dict:
        return run_info.run_info(torch.device("cpu"))

    assert info()["git"] is None
    git(code, "init", "-q")
    git(code, "add", ".")
    git(code, "commit", "-qm", "one")
    head = git(code, "rev-parse", "HEAD")
    assert info()["git"] == head and len(head) == 40
    (code / "log.py").write_text("2")
    assert info()["git"] == f"{head}-dirty"
    assert info()["command"] == ["train.py", "--cfg-path", "x.yaml"]
    assert {name: info()["packages"][name] for name in ("torch", "transformers", "timm")} == {
        name: version(name) for name in ("torch", "transformers", "timm")
    }
    assert (info()["processes"], info()["device"]) == (1, "cpu")
    assert info()["python"] == ".".join(map(str, sys.version_info[:3]))
