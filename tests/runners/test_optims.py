"""Schedules and parameter groups equal those recorded from the original."""

from dataclasses import replace

import pytest
from torch import nn

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, RunConfig
from minigpt4.models.checkpoint import file_name
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.optims import build_optimizer, build_schedule
from tests.conftest import golden_json

RENAMED = {"warmup_start_lr": "warmup_lr", "decay_rate": "lr_decay_rate"}


@pytest.mark.parametrize("case", golden_json("6_training")["schedules"], ids=lambda c: f"{c['name']}")
def test_schedules_equal_the_recorded_ones(case):
    kwargs = {RENAMED.get(k, k): v for k, v in case["kwargs"].items()}
    run = RunConfig(lr_sched=case["name"], **kwargs)
    schedule = build_schedule(run, case["iters_per_epoch"])
    ours = [schedule(step) for step in range(len(case["lr"]))]
    if run.warmup_steps > case["iters_per_epoch"] and run.max_epoch > 1:
        # quirk 19: the original starts the warm-up again at each epoch; ours continues
        same = case["iters_per_epoch"]
        assert ours[:same] == pytest.approx(case["lr"][:same])
        assert ours[same] == pytest.approx(run.warmup_lr + (run.init_lr - run.warmup_lr) * same / run.warmup_steps)
    else:
        assert ours == pytest.approx(case["lr"])


def test_constant_schedule_warms_up_and_stays():
    schedule = build_schedule(RunConfig(lr_sched="constant_lr", init_lr=1.0, warmup_lr=0.0, warmup_steps=4), 10)
    assert [schedule(s) for s in (0, 2, 4, 99)] == [0.0, 0.5, 1.0, 1.0]


@pytest.fixture
def recorded_models(parity_engines, parity_config) -> dict[str, nn.Module]:
    unfrozen = replace(parity_config, freeze_vit=False, freeze_qformer=False, ckpt="")
    return {
        "vicuna0_all_frozen": parity_engines["vicuna0"].model,
        "llama2_no_qformer": parity_engines["llama2"].model,
        "v2_lora": parity_engines["v2"].model,
        "vicuna0_unfrozen_vit_and_qformer": MiniGPT4.from_config(Config(model=unfrozen)),
    }


def test_groups_equal_the_recorded_ones(recorded_models):
    recorded = golden_json("6_training")["param_groups"]
    assert recorded_models.keys() == recorded.keys()
    for case, model in recorded_models.items():
        names = {id(parameter): file_name(name) for name, parameter in model.named_parameters()}
        ours = build_optimizer(model, RunConfig(weight_decay=0.05, init_lr=0.01)).param_groups
        for group, theirs in zip(ours, recorded[case], strict=True):
            assert {names[id(parameter)] for parameter in group["params"]} == set(theirs["names"])
            assert [group[key] for key in ("weight_decay", "lr", "eps")] == [
                theirs[key] for key in ("weight_decay", "lr", "eps")
            ]
            assert list(group["betas"]) == theirs["betas"]


def test_the_order_of_weights_is_that_of_the_first_runs(parity_config):
    """States of the optimizer in checkpoints go by position."""
    config = replace(parity_config, lora_r=2, unfreeze=["vit", "qformer"])
    model = MiniGPT4.from_config(Config(model=config))
    names = {id(parameter): file_name(name) for name, parameter in model.named_parameters()}
    decayed = [names[id(p)] for p in build_optimizer(model, RunConfig()).param_groups[0]["params"]]
    parts = list(dict.fromkeys(name.split(".")[0] for name in decayed))
    assert parts == ["query_tokens", "llama_model", "visual_encoder", "Qformer", "llama_proj"]


def test_biases_and_vectors_get_no_weight_decay():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    groups = build_optimizer(model, RunConfig(weight_decay=0.1)).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 1), (0.0, 3)]


def test_frozen_parameters_are_not_in_the_optimizer():
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    (group,) = build_optimizer(model, RunConfig()).param_groups
    assert group["params"] == [model.bias]
    model.requires_grad_(False)
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(model, RunConfig())
