"""train.py under torchrun, stopped by real signals: shards and map-style data, processes and workers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.locks import locked
from minigpt4.runners.run_state import checkpoint_to_continue
from minigpt4.tiny.data import write_all
from tests.runners.run_strategies import ROOT
from tests.waiting import LIMIT, wait_for

pytestmark = pytest.mark.distributed

CONFIG = """
model:
  arch: mini_gpt4
  model_type: tiny
  prompt_path: ''
  ckpt: null
datasets:
  cc_sbu:
    build_info: {{storage: {data}/stage1}}
    sample_ratio: 2
  cc_sbu_align:
    build_info: {{storage: {data}/stage2}}
run:
  init_lr: 1e-3
  batch_size_train: 2
  num_workers: 2
  max_epoch: 2
  iters_per_epoch: {steps}
  log_freq: 1
  resume: auto
  amp: False
  device: cpu
  output_dir: {out}
"""


def start(config: Path) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), "--cfg-path", str(config)],
        # without the latter, what torchrun starts again meets at the addresses of before (docs/train.md)
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def train_to(step: int, out: Path, run: subprocess.Popen) -> None:
    wait_for(lambda: len(losses(out)) >= step or run.poll() is not None)


def start_beside(config: Path) -> subprocess.CompletedProcess:
    """A single process, without torchrun."""
    command = [sys.executable, str(ROOT / "train.py"), "--cfg-path", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


def losses(out: Path) -> list[float]:
    lines = (out / "log.txt").read_text().splitlines() if (out / "log.txt").is_file() else []
    return [record["train_loss"] for record in map(json.loads, lines) if "train_loss" in record]


def test_a_run_that_is_terminated_and_one_that_loses_a_process_continue_to_the_bit(tmp_path):
    write_all(tmp_path / "data", seed=1, scale=0.05)
    for name in ("whole", "parts"):
        out = tmp_path / name
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(data=tmp_path / "data", out=out, steps=20))
        run = start(tmp_path / f"{name}.yaml")
        if name == "parts":
            train_to(5, out, run)
            run.send_signal(signal.SIGTERM)
            errors = run.communicate(timeout=LIMIT)[1]
            done = len(losses(out))
            assert 5 <= done < 38, errors[-3000:]
            assert (out / f"checkpoint_step_{done}" / "model.safetensors").is_file(), errors[-3000:]
            assert "killed by signal" not in errors

            run = start(tmp_path / f"{name}.yaml")
            train_to(done + 2, out, run)
            psutil.Process(run.pid).children()[-1].kill()  # a rank; torchrun starts all of them again
        errors = run.communicate(timeout=LIMIT)[1]
        assert run.returncode == 0, errors[-3000:]
        assert ("exitcode: -9" in errors) is (name == "parts"), errors[-3000:]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "checkpoint_1" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())


def test_ranks_end_with_a_killed_torchrun_and_their_folder_is_locked_until_then(tmp_path):
    write_all(tmp_path / "data", seed=1, scale=0.05)
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    config.write_text(CONFIG.format(data=tmp_path / "data", out=out, steps=100_000))
    with start(config) as run:
        train_to(3, out, run)
        holder = json.loads((out / ".lock.json").read_text())["pid"]
        ranks, of_the_run = (psutil.Process(run.pid).children(recursive) for recursive in (False, True))
        assert holder in [rank.pid for rank in ranks] and len(of_the_run) > len(ranks) == 2  # loaders have workers

        for rank in ranks:
            rank.suspend()
        run.kill()
        second = start_beside(config)
        assert second.returncode == 2, second.stderr
        assert f"run.output_dir: '{out}' is in use by process {holder} on " in second.stderr.splitlines()[-1]

        for rank in ranks:
            rank.resume()
        assert psutil.wait_procs(of_the_run, timeout=LIMIT)[1] == []
        assert "which started this one, is gone: stopping" in run.stderr.read()
    done = len(losses(out))
    assert (out / f"checkpoint_step_{done}").is_dir() and not list(out.glob("*.tmp"))

    with locked("run.output_dir", out, 0):
        assert checkpoint_to_continue("auto", out)[1]["step"] == done
