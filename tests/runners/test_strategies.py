"""Every strategy on two processes trains as one process does with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt4 import cli
from minigpt4.tiny.data import write_all
from tests.runners.run_strategies import ROOT, STRATEGIES
from tests.waiting import LIMIT

pytestmark = pytest.mark.distributed

SCRIPT = str(Path(__file__).with_name("run_strategies.py"))


def start(processes: int, data: Path, out: Path, *names: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, SCRIPT, str(data), str(out), *names],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    write_all(folder / "data", seed=1, scale=0.05)
    start(1, folder / "data", folder / "one", "ddp")
    start(2, folder / "data", folder / "two", *STRATEGIES)
    return folder


def numbers(folder: Path, key: str) -> list[float]:
    return [r[key] for r in map(json.loads, (folder / "log.txt").read_text().splitlines()) if key in r]


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_and_weights_are_those_of_one_process(name, runs):
    one, two = runs / "one" / "ddp", runs / "two" / name
    assert len(numbers(two, "train_loss")) == 8
    assert numbers(two, "train_loss") == pytest.approx(numbers(one, "train_loss"), abs=1e-5)
    assert numbers(two, "val_loss") == pytest.approx(numbers(one, "val_loss"), abs=1e-5)
    files = [load_file(run / "checkpoint_1" / "model.safetensors") for run in (one, two)]
    assert files[0].keys() == files[1].keys() and any("lora_A" in key for key in files[0])
    for key, weight in files[0].items():
        torch.testing.assert_close(files[1][key], weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_resumed_run_continues_to_the_bit(name, runs):
    whole, resumed = runs / "two" / name, runs / "two" / f"{name}_resumed"
    assert numbers(resumed, "train_loss") == numbers(whole, "train_loss")
    files = [load_file(run / "checkpoint_1" / "model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(files[1][key], weight) for key, weight in files[0].items())


@pytest.mark.parametrize("stage", range(4))
def test_raw_deepspeed_checkpoints_convert_to_the_weights_beside_them(stage, runs, tmp_path, monkeypatch):
    checkpoint = runs / "two" / f"deepspeed{stage}" / "checkpoint_1"
    monkeypatch.setattr("sys.argv", ["minigpt4", "convert-deepspeed", str(checkpoint), "--out", str(tmp_path)])
    cli.main()
    converted, beside = load_file(tmp_path / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert converted.keys() == beside.keys()
    assert all(torch.equal(converted[name], value) for name, value in beside.items())
