"""The bundled model through the entry points that users call: it sees, it trains, it is scored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minigpt4.config.loading import load_config
from minigpt4.inference.chat import Chat
from minigpt4.inference.loading import load_engine
from minigpt4.tiny.data import write_all
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "minigpt4" / "assets" / "tiny"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The data sets of `minigpt4 tiny data`, a twentieth of their size."""
    folder = tmp_path_factory.mktemp("data")
    write_all(folder, seed=1, scale=0.05)
    return folder


def call(script: str, config: str, *options: str, processes: int = 0) -> str:
    """Runs an entry point as a user does, and returns what it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *launcher, script, "--cfg-path", config, "--options", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_everything_that_ships_is_small_and_nothing_is_missing():
    files = {p.relative_to(ASSETS).as_posix(): p.stat().st_size for p in ASSETS.rglob("*") if p.is_file()}
    needed = {
        "README.md",
        "eva_vit.safetensors",
        "blip2_qformer.safetensors",
        "projection.safetensors",
        "llm/config.json",
        "llm/model.safetensors",
        "llm/tokenizer.model",
    }
    assert needed <= files.keys()
    assert sum(p.stat().st_size for p in ASSETS.parent.rglob("*") if p.is_file()) < 8e6


@pytest.mark.distributed
def test_two_stages_on_two_processes_and_on_one(data, tmp_path):
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    short = ("run.max_epoch=2", "run.iters_per_epoch=12", "run.warmup_steps=3", "run.log_freq=4")
    call(
        "train.py",
        "train_configs/minigpt4_tiny_stage1_pretrain.yaml",
        f"datasets.cc_sbu.build_info.storage={data}/stage1",
        f"datasets.cc_sbu.build_info.valid_storage={data}/stage1_val",
        f"run.output_dir={stage1}",
        *short,
        processes=2,
    )
    call(
        "train.py",
        "train_configs/minigpt4_tiny_stage2_finetune.yaml",
        f"datasets.cc_sbu_align.build_info.storage={data}/stage2",
        f"datasets.cc_sbu_align.build_info.valid_storage={data}/stage2_val",
        f"model.ckpt={stage1}/checkpoint_best",
        f"run.output_dir={stage2}",
        *short,
        processes=1,
    )
    for folder in (stage1, stage2):
        losses = [r["train_loss"] for r in records(folder) if "train_loss" in r]
        assert len(losses) == 6  # ranks other than 0 write nothing
        assert losses[-1] < 0.8 * losses[0]
        validations = [r["val_loss"] for r in records(folder) if "val_loss" in r]
        assert len(validations) == 2 and max(validations) < 0.9 * losses[0]
        assert {"checkpoint_0", "checkpoint_1", "checkpoint_best", "loss.png"} <= {p.name for p in folder.iterdir()}


@pytest.mark.slow
def test_a_seed_reproduces_a_run(data, tmp_path, minigpt4):
    weights = []
    for name in "ab":
        options = [
            f"datasets.cc_sbu.build_info.storage={data}/stage1",
            f"run.output_dir={tmp_path}/{name}",
            "run.valid_splits=[]",
            "run.max_epoch=1",
            "run.iters_per_epoch=3",
        ]
        assert minigpt4("train", "--cfg-path", "minigpt4_tiny_stage1_pretrain", "--options", *options)[0] == 0
        weights.append(load_file(tmp_path / name / "checkpoint_0" / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.distributed
def test_the_shipped_model_sees_and_the_controls_do_not(data, tmp_path):
    printed = call(
        "evaluate.py",
        "eval_configs/minigpt4_tiny_benchmark.yaml",
        f"evaluation_datasets.tiny_scenes.eval_file_path={data}/benchmark/benchmark.json",
        f"evaluation_datasets.tiny_scenes.img_path={data}/benchmark/image",
        f"run.output_dir={tmp_path}",
    )
    scores = json.loads((tmp_path / "evaluation.json").read_text())["tiny_scenes"]
    # 25 scenes only: the README's figures are of 500
    assert scores["trained"]["overall"] > 0.85
    for control in ("untrained_projection", "shuffled_images", "blank_images"):
        assert scores[control]["overall"] < 0.4
        assert f"| {control} " in printed
    assert len(scores["trained"]) == 9  # eight types and overall
    answers = (tmp_path / "tiny_scenes" / "predictions.jsonl").read_text().splitlines()
    assert len(answers) == len(json.loads((data / "benchmark" / "benchmark.json").read_text()))
    assert json.loads(answers[0]).keys() >= {"id", "prompt", "images", "answer", "reference", "score"}


@pytest.mark.slow
def test_a_chat_of_several_turns(data):
    chat = Chat(load_engine(load_config(ROOT / "eval_configs" / "minigpt4_tiny_eval.yaml", ["run.device=cpu"])))
    questions = json.loads((data / "benchmark" / "benchmark.json").read_text())
    right = asked = 0
    for name in sorted({q["image"] for q in questions})[:6]:
        chat.restart()
        chat.upload_img(Image.open(data / "benchmark" / "image" / name))
        for q in [q for q in questions if q["image"] == name][:3]:
            right += chat.answer(q["question"]).rstrip(".").lower() == q["answer"].rstrip(".").lower()
            asked += 1
    assert right / asked > 0.7
