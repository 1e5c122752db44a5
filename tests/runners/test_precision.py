"""Mixed precision: bf16 by default; fp16 with a scaler that takes care of overflows, and is continued with."""

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import RunConfig
from minigpt4.inference.loading import load_prompter
from minigpt4.models.llm import DTYPES
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners import run_state
from minigpt4.runners.strategies.building import build_strategy
from minigpt4.runners.strategies.strategy import amp_dtype
from tests.batches import batch_of, captioned
from tests.runners.run_strategies import ROOT
from tests.runners.toy import Poisoned, Toy, toy_runner

FP16 = {"amp": True, "amp_dtype": "fp16"}


def test_bf16_is_the_default():
    assert amp_dtype(RunConfig(), torch.device("cpu")) == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("llm_dtype", ["fp32", "bf16"])
def test_in_bf16_matrices_multiply_and_what_trains_stays_in_fp32(llm_dtype):
    pictures = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    captions = captioned(pictures, ["The picture shows a red circle.", "Two blue squares"])
    options = ["model.ckpt=null", "model.prompt_path=''"]  # no prompt is drawn
    config = load_config(ROOT / "train_configs" / "minigpt4_tiny_stage2_finetune.yaml", options)
    batch = batch_of(load_prompter(config.model), captions)
    losses = []
    for dtype, run in (("fp32", RunConfig(amp=False)), (llm_dtype, RunConfig())):
        config.model.llm_dtype = dtype
        torch.manual_seed(0)  # the projection begins alike
        model = MiniGPT4.from_config(config)
        assert {p.dtype for p in model.llm.parameters()} == {DTYPES[dtype]}
        strategy = build_strategy(model, run, torch.device("cpu"))
        logits = []
        model.llm.lm_head.register_forward_hook(lambda m, i, output, seen=logits: seen.append(output.dtype))
        with strategy.autocast():
            loss = strategy.wrapped(batch)["loss"]
        assert logits == [torch.bfloat16 if run.amp else torch.float32] and loss.dtype == torch.float32
        strategy.backward(loss, last=True)
        assert {p.grad.dtype for p in model.projection.parameters()} == {torch.float32}
        assert strategy.step(1e-3)
        assert {v.dtype for state in strategy.optimizer.state.values() for v in state.values()} == {torch.float32}
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


@pytest.mark.slow
def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(tmp_path, caplog):
    model = Poisoned({3}, "gradient")
    runner = toy_runner(tmp_path, model=model, max_epoch=1, **FP16)
    weights, scales = [], []
    step = runner.strategy.step

    def watched(lr: float) -> bool:
        good = step(lr)
        weights.append(model.projection.weight.clone())
        scales.append(runner.strategy.scaler.get_scale())
        return good

    runner.strategy.step = watched
    runner.train()
    assert scales == [2.0**16] * 2 + [2.0**15] * 6
    changed = [not torch.equal(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    assert changed == [True, False, True, True, True, True, True]
    assert "the step is skipped" not in caplog.text  # it is usual


@pytest.mark.slow
def test_gradients_that_overflow_at_any_scale_end_the_run(tmp_path):
    model = Poisoned(set(range(99)), "gradient")
    before = model.projection.weight.clone()
    runner = toy_runner(tmp_path, model=model, max_bad_steps=3, **FP16)
    with pytest.raises(UserError, match="3 steps in a row gave a loss or gradients that are not numbers"):
        runner.train()
    assert runner.step < 24 and torch.equal(model.projection.weight, before)


@pytest.mark.slow
def test_the_scaler_is_continued_with_to_the_bit(tmp_path):
    toy_runner(tmp_path / "whole", model=Poisoned({3}, "gradient"), save_steps=5, **FP16).train()
    middle = tmp_path / "whole" / "checkpoint_step_5"
    saved = run_state.read_state(middle)["engine"]["scaler"]
    assert (saved["scale"], saved["_growth_tracker"]) == (2.0**15, 2)
    toy_runner(tmp_path / "again", resume=str(middle), **FP16).train()
    folders = [tmp_path / name / "checkpoint_3" for name in ("whole", "again")]
    whole, again = (run_state.read_state(folder)["engine"]["scaler"] for folder in folders)
    assert whole == again and whole["_growth_tracker"] == 29
    weights, same = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(weights[name], value) for name, value in same.items())


@pytest.mark.slow
@pytest.mark.parametrize("most", [None, 0.01])
def test_gradients_are_clipped_as_they_are_without_the_scale(most, tmp_path, monkeypatch):
    norms = []
    for run in ({}, FP16):
        model = Toy()
        runner = toy_runner(tmp_path / str(len(norms)), model=model, max_grad_norm=most, **run)
        batch = runner.next_batch()
        optimizer = runner.strategy.optimizer

        def note(*_, projection=model.projection, **__) -> None:
            norms.append(torch.cat([p.grad.flatten() for p in projection.parameters()]).norm().item())

        monkeypatch.setattr(optimizer, "step", note)
        runner.train_iteration(batch, 1e-2, update=True)
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[0] > 0
    assert (norms[0] == pytest.approx(0.01, rel=1e-3)) == (most is not None)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_fp16_without_a_scaler_is_refused(strategy, monkeypatch):
    monkeypatch.setattr("minigpt4.runners.strategies.building.world_size", lambda: 2)
    with pytest.raises(UserError, match=f"run.strategy: {strategy} does not scale fp16 gradients. Set run.amp_dtype"):
        build_strategy(Toy(), RunConfig(strategy=strategy, amp_dtype="fp16"), torch.device("cpu"))


def test_zero_3_refuses_fp16_weights_on_a_cpu(monkeypatch):
    monkeypatch.setattr("minigpt4.runners.strategies.building.world_size", lambda: 2)
    run = RunConfig(strategy="deepspeed", zero_stage=3)
    with pytest.raises(UserError, match=r"run.zero_stage: .* Set model.vit_precision=bf16 and model.llm_dtype=bf16"):
        build_strategy(Toy().half(), run, torch.device("cpu"))
