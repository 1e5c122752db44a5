"""The runner: the original's numbers, what it writes, accumulation, clipping, several processes."""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Container
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, DatasetConfig, RunConfig
from minigpt4.conversation.prompter import Prompter
from minigpt4.models.checkpoint import load_checkpoints, save_weights
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.batches import batch_of, captioned
from tests.conftest import assert_recorded, golden, golden_json
from tests.runners.toy import Pictures


@pytest.fixture
def model(parity_model, parity_config):
    fresh = copy.deepcopy(parity_model)
    load_checkpoints(fresh, [parity_config.ckpt])
    return fresh


@pytest.fixture
def runner(parity_prompter) -> Callable[..., RunnerBase]:
    return partial(runner_of, parity_prompter)


def runner_of(prompter: Prompter, model: MiniGPT4, folder: Path, valid: bool = False, **run) -> RunnerBase:
    settings = {"batch_size_train": 4, "batch_size_eval": 3, "num_workers": 0, "output_dir": str(folder)} | {
        "amp": False
    }
    settings |= {"output_dir": str(folder)} | run
    config = Config(datasets={"pictures": DatasetConfig()}, run=RunConfig(**settings))
    datasets = {"train": {"pictures": Pictures(8)}}
    if valid:
        config.run.valid_splits = ["val"]
        datasets["val"] = {"pictures": Pictures(7)}
    return RunnerBase(config, ImageTextPretrainTask(config), model, datasets, prompter)


RECORDED_UPDATES = {"vicuna0_stage1": range(6), "vicuna0_stage1_accum2": (1, 4)}


def recorded_run(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Settings and losses of a recorded run; the weights and optimizer state at its end."""
    data = golden("6_training")
    return golden_json("6_training")["training_runs"][name], {
        key.removeprefix(f"{name}."): value for key, value in data.items() if key.startswith(f"{name}.")
    }


def train_as_recorded(trained: RunnerBase, prompter: Prompter, spec: dict, updates: Container[int]) -> Tensor:
    """Six steps with the recorded batches and learning rates; returns their losses."""
    images = golden("3_images")["images_int8"].float() / 32
    trained.model.train()
    losses = []
    for i, (answers, lr) in enumerate(zip(spec["batches"], spec["lr_used"], strict=True)):
        batch = batch_of(prompter, captioned(images[:2] if i % 2 == 0 else images[2:4], answers))
        losses.append(trained.train_iteration(batch, lr, update=i in updates)[0])
    return torch.tensor(losses)


def settings(spec: dict, **changed) -> dict:
    config = spec["run_cfg"]
    betas = (0.9, config.get("beta2", 0.999))
    return {"weight_decay": config["weight_decay"], "init_lr": config["init_lr"], "betas": betas} | changed


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED_UPDATES)
def test_six_steps_equal_those_of_the_original(name, parity_prompter, runner, model, tmp_path):
    """The second run, quirk 19: it adds up two batches' gradients, undivided, and keeps those of an epoch's end."""
    (spec, data), file = recorded_run(name), "6_training"
    trained = runner(model, tmp_path, **settings(spec))
    losses = train_as_recorded(trained, parity_prompter, spec, RECORDED_UPDATES[name])
    assert_recorded(file, "losses of 6 steps", losses, torch.tensor(spec["losses"]), 2e-5)
    for i, part in enumerate(("weight", "bias")):
        parameter = model.projection.get_parameter(part)
        assert_recorded(file, "weights after 6 steps", parameter.data, data[f"final.llama_proj.{part}"], 1e-5)
        state = trained.strategy.optimizer.state[parameter]
        assert state["step"] == data[f"optimizer_state.{i}.step"].item()
        for key in ("exp_avg", "exp_avg_sq"):
            recorded = data[f"optimizer_state.{i}.{key}"]
            scale = recorded.abs().max()
            assert_recorded(file, f"Adam's {key} / largest", state[key] / scale, recorded / scale, 1e-4)
    for ours, theirs in zip(trained.strategy.optimizer.param_groups, spec["optimizer_param_groups"], strict=True):
        same = ("weight_decay", "eps", "amsgrad", "maximize")
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert list(ours["betas"]) == theirs["betas"]
        assert ours["lr"] == spec["lr_used"][max(RECORDED_UPDATES[name])]


@pytest.mark.slow
def test_accumulation_differs_from_the_originals(parity_prompter, runner, model, tmp_path):
    """Quirk 19, both values (the recorded ones: see above): divided, and no gradient is carried to the next epoch."""
    (spec, data), fresh = recorded_run("vicuna0_stage1_accum2"), copy.deepcopy(model)
    options = settings(spec, accum_grad_iters=2, iters_per_epoch=3)
    trained = runner(model, tmp_path / "ours", **options)
    updates = [i for i in range(6) if trained.ends_step(i % 3, 3)]
    assert updates == [1, 2, 4, 5]
    losses, recorded = train_as_recorded(trained, parity_prompter, spec, updates), torch.tensor(spec["losses"])
    torch.testing.assert_close(losses[:2], recorded[:2], atol=2e-5, rtol=0)
    assert (losses[3:] - recorded[3:]).abs().min() > 1e-2
    # updated when the original is, the gradients are half as large: Adam's steps are the same
    divided = runner(fresh, tmp_path / "divided", **options)
    losses = train_as_recorded(divided, parity_prompter, spec, RECORDED_UPDATES["vicuna0_stage1_accum2"])
    torch.testing.assert_close(losses, recorded, atol=1e-4, rtol=0)
    state = divided.strategy.optimizer.state[fresh.projection.weight]
    for key, factor in (("exp_avg", 2), ("exp_avg_sq", 4)):
        expected = data[f"optimizer_state.0.{key}"]
        torch.testing.assert_close(state[key] * factor, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)


def test_checkpoints_leave_out_the_originals_buffers(model, tmp_path):
    """Quirk 20, both values."""
    save_weights({n: p for n, p in model.named_parameters() if p.requires_grad}, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    ours = {key: [list(value.shape), str(value.dtype)] for key, value in saved.items()}
    for name in RECORDED_UPDATES:
        recorded = recorded_run(name)[0]["checkpoint_model_keys"]
        buffers = {key for key in recorded if key.endswith((".inv_freq", ".position_ids"))}
        assert len(buffers) == 3 and ours == {key: recorded[key] for key in recorded.keys() - buffers}


def test_the_originals_checkpoint_files_are_read(model, tmp_path):
    spec, data = recorded_run("vicuna0_stage1")
    weights = {key: torch.zeros(shape) for key, (shape, _) in spec["checkpoint_model_keys"].items()}
    weights |= {key.removeprefix("final."): value for key, value in data.items() if key.startswith("final.")}
    file = {"model": OrderedDict(weights), "optimizer": {}, "config": {}, "scaler": None, "epoch": 1}
    assert {key: type(value).__name__ for key, value in file.items()} == spec["checkpoint_top_level_keys"]
    torch.save(file, tmp_path / f"checkpoint_{spec['checkpoint_epoch']}.pth")
    load_checkpoints(model, [tmp_path / "checkpoint_1.pth"])
    assert torch.equal(model.projection.weight, data["final.llama_proj.weight"])


@pytest.mark.slow
def test_a_run_writes_log_plot_config_and_trainable_weights_only(runner, model, tmp_path):
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = model.projection.weight.clone()
    runner(model, tmp_path, valid=True, max_epoch=2, log_freq=1, init_lr=1e-3).train()

    assert not torch.equal(model.projection.weight, before)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    names = {p.name for p in tmp_path.iterdir()}
    folders, files = (
        {"checkpoint_0", "checkpoint_1", "checkpoint_best", "tensorboard"},
        {"config.yaml", "run_info.json"},
    )
    assert names == folders | files | {"log.txt", "loss.png"}
    assert {p.name for p in (tmp_path / "checkpoint_1").iterdir()} == {
        "config.yaml",
        "measures.json",
        "checksums.json",
        "model.safetensors",
        "training_state_4.pt",
    }
    assert json.loads((tmp_path / "run_info.json").read_text())["packages"]["torch"] == version("torch")
    weights = load_file(tmp_path / "checkpoint_1" / "model.safetensors")
    assert weights.keys() == {"llama_proj.weight", "llama_proj.bias"}
    assert torch.equal(weights["llama_proj.weight"], model.projection.weight)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

    records = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    steps = [r for r in records if "train_loss" in r]
    epochs = [r for r in records if "val_loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert [r["epoch"] for r in epochs] == [0, 1]
    assert epochs[0]["epoch_loss"] == pytest.approx((steps[0]["train_loss"] + steps[1]["train_loss"]) / 2)
    assert "max_epoch: 2" in (tmp_path / "config.yaml").read_text()


@pytest.mark.slow
def test_frozen_parts_stay_in_eval_mode_without_graphs_after_validation_too(runner, model, tmp_path):
    seen = []
    for name in ("vision.vit", "vision.qformer", "llm"):

        def note(module, inputs, output, name=name):
            if model.training:
                dropping = any(part.training for part in module.modules())
                seen.append((name, dropping, torch.is_grad_enabled()))

        model.get_submodule(name).register_forward_hook(note)
    trained = runner(model, tmp_path, valid=True, max_epoch=2)
    in_optimizer = {id(p) for group in trained.strategy.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in model.projection.parameters()}
    trained.train()
    frozen = [("vision.vit", False, False), ("vision.qformer", False, False), ("llm", False, True)]
    assert seen == frozen * 4  # steps
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.requires_grad] == []
    assert trained.strategy.optimizer.state.keys() == set(model.projection.parameters())


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch(parity_prompter, runner, model, tmp_path):
    other = copy.deepcopy(model)
    pictures = torch.stack([Pictures(8)[i]["conversation"].pictures[0] for i in range(4)])
    samples = captioned(pictures, ["a dog"] * 4)  # equal lengths: the mean over tokens is then that over batches
    parts = [batch_of(parity_prompter, samples[i : i + 2]) for i in (0, 2)]
    large = batch_of(parity_prompter, samples)
    halves = runner(model, tmp_path / "a", accum_grad_iters=2)
    assert [halves.ends_step(i, 2) for i in range(2)] == [False, True]
    assert runner(copy.deepcopy(model), tmp_path / "c", accum_grad_iters=5).ends_step(1, 2)  # the epoch's last
    for i, part in enumerate(parts):
        halves.train_iteration(part, 1e-2, update=i == 1)
    runner(other, tmp_path / "b").train_iteration(large, 1e-2, update=True)
    torch.testing.assert_close(model.projection.weight, other.projection.weight, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_gradients_are_clipped(parity_prompter, runner, model, tmp_path, monkeypatch):
    seen = []
    trained = runner(model, tmp_path, max_grad_norm=0.01)
    monkeypatch.setattr(
        trained.strategy.optimizer, "step", lambda: seen.append(model.projection.weight.grad.norm().item())
    )
    batch = batch_of(parity_prompter, captioned(torch.randn(2, 3, 56, 56), ["a", "b"]))
    trained.train_iteration(batch, 1e-2, update=True)
    assert 0 < seen[0] <= 0.01 + 1e-6


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"resume": "/no/such"}, "run.resume: '/no/such' is not a checkpoint to continue from"),
        ({"max_iters": 5}, "run.max_iters: runner_base counts epochs"),
        ({"metric": "overall"}, "run.metric: evaluation_datasets names none"),
        ({"evaluate": True}, "run.evaluate: True trains nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(run, message):
    with pytest.raises(UserError, match=message):
        RunnerBase.check(Config(run=RunConfig(**run)))


def test_a_run_that_cannot_start_leaves_the_earlier_log(runner, model, tmp_path):
    (tmp_path / "log.txt").write_text("earlier")
    with pytest.raises(UserError, match="batch_size"):
        runner(model, tmp_path, batch_size_train=99)
    assert (tmp_path / "log.txt").read_text() == "earlier"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run.output_dir: .* can't be made"):
        runner(model, tmp_path / "file" / "x")
