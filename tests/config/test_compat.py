"""translate: other projects' spellings become ours, and nothing of them is dropped in silence."""

import logging
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.config.compat import FIXED, KEYS, WITHOUT_EFFECT, translate
from minigpt4.config.loading import load_config
from tests.config import COMPAT, write

DEEPSPEED = "run.deepspeed_config"
IDLE = [f"{group}.{name}" for group, names in WITHOUT_EFFECT.items() for name in names]
NUMBERS = st.integers(1, 99) | st.floats(0.1, 1)


def layer(**values: Any) -> dict[str, Any]:
    """{a__b: 1} as {a: {b: 1}}."""
    return nested({key.replace("__", "."): value for key, value in values.items()})


def nested(values: dict[str, Any]) -> dict[str, Any]:
    top: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = top
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return top


@given(st.sampled_from(sorted(KEYS)), NUMBERS, st.none() | st.just("") | NUMBERS)
def test_a_key_is_taken_and_two_values_for_it_are_refused(theirs, value, own):
    theirs, ours = theirs.replace("*", "gqa"), KEYS[theirs].replace("*", "gqa")
    if theirs.startswith(f"{ours}."):  # one place can't hold both
        assert translate("x.yaml", nested({theirs: value})) == nested({ours: value})
        return
    both = nested({theirs: value, ours: own})
    if own in (None, "", value):
        group = ours.split(".")[0]
        assert translate("x.yaml", both)[group] == nested({ours: value})[group]
    else:
        with pytest.raises(UserError) as error:
            translate("x.yaml", both)
        assert str(error.value) == f"x.yaml: {theirs}: {value}, but {ours}: {own}. Remove one of them."


def test_two_of_their_keys_for_one_of_ours_are_named_as_they_are_written():
    clip = "run.grad_norm_clip: 1"
    with pytest.raises(UserError, match=rf"{DEEPSPEED}.gradient_clipping: 2, but {clip}. Remove one of them."):
        translate("x.yaml", nested({"run.grad_norm_clip": 1, f"{DEEPSPEED}.gradient_clipping": 2}))


def test_an_option_beats_the_files_other_spelling(tmp_path):
    path = write(tmp_path, "model: {model_type: tiny}\nrun: {max_grad_norm: 1}")
    assert load_config(path, ["run.grad_norm_clip=2"]).run.max_grad_norm == 2


@given(st.sampled_from([key for key in (*KEYS, *FIXED, *IDLE) if key.startswith(DEEPSPEED)]), st.data())
def test_a_typo_in_deepspeeds_settings_is_refused_with_the_right_name(key, data):
    parts = key.split(".")
    at = data.draw(st.integers(2, len(parts) - 1))
    typo = [*parts[:at], parts[at] + "q", *parts[at + 1 :]]
    with pytest.raises(UserError) as error:
        translate("x.yaml", nested({".".join(typo): 1}))
    message = f"x.yaml: {'.'.join(typo[: at + 1])}: not known here. Did you mean '{parts[at]}'? Known: "
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("fp16.enabled", True, "Set it to False or remove it."),
        ("optimizer.type", "Lamb", "Set it to AdamW or remove it."),
        ("scheduler", {"type": "WarmupLR"}, "Remove it."),
        ("train_batch_size", 128, "Remove it."),
    ],
)
def test_what_deepspeed_would_learn_otherwise_is_refused(key, value, cure):
    with pytest.raises(UserError, match=rf"{DEEPSPEED}.{key}: .* is not supported. {cure}$"):
        translate("x.yaml", nested({f"{DEEPSPEED}.{key}": value}))


def test_deepspeeds_settings_are_a_group():
    with pytest.raises(UserError, match=f"{DEEPSPEED}: expected keys and values below it, found 'ds.json'"):
        translate("x.yaml", layer(run__deepspeed_config="ds.json"))


@pytest.mark.parametrize("key", IDLE)
def test_what_has_no_effect_is_said(key, caplog):
    with caplog.at_level(logging.WARNING):
        assert translate("x.yaml", nested({key: 1})) == {"run": {}}
    assert f"x.yaml: {DEEPSPEED}: without effect here: {key.removeprefix(f'{DEEPSPEED}.')}" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_deepspeeds_runner_and_stage_become_the_strategy(stage):
    config = load_config(COMPAT / f"minigpt4qwen__lavis__projects__deepspeed__train_zero{stage}_3090x4.yaml")
    assert (config.run.runner, config.run.strategy, config.run.zero_stage) == ("runner_base", "deepspeed", stage)


@pytest.mark.parametrize(
    ("lora", "rank"), [("get_lora: True, lora_r: 4", 4), ("get_lora: False, lora_r: 4", 0), ("lora_r: 4", 4)]
)
def test_get_lora_switches_the_adapters(lora, rank, tmp_path):
    config = load_config(write(tmp_path, f"model: {{arch: minigpt4qwen, {lora}}}"))
    assert (config.model.lora_r, config.model.lora_alpha) == (rank, 32)  # the original's default of lora_alpha


@pytest.mark.parametrize("extra", [{}, {"model__lora_r": 0}])
def test_adapters_without_a_rank_are_refused(extra):
    with pytest.raises(UserError, match="model.get_lora: True, but no model.lora_r. Set it too"):
        translate("x.yaml", layer(model__get_lora=True, **extra))


@pytest.mark.parametrize("value", ["maybe", None, 2])
def test_get_lora_is_true_or_false(value):
    with pytest.raises(UserError, match="model.get_lora: .* is not supported"):
        translate("x.yaml", layer(model__get_lora=value, model__lora_r=8))


@pytest.mark.parametrize("name", ["qwen7b_chat", "qwen14b_chat"])
def test_model_types_of_qwen_are_one(name):
    model = translate("x.yaml", layer(model__arch="minigpt4qwen", model__model_type=name))["model"]
    assert model == {"arch": "mini_gpt4", "model_type": "pretrain_qwen"}


def test_processors_are_translated_wherever_they_stand():
    theirs = {"vis_processor": {"eval": {"name": "blip_image_eval"}, "train": {"name": 3}}, "text_processor": None}
    changed = translate("x.yaml", {"preprocess": deepcopy(theirs), "datasets": {"*": theirs, "cc_sbu": None, 3: []}})
    ours = {"vis_processor": {"eval": {"name": "blip2_image_eval"}, "train": {"name": 3}}, "text_processor": None}
    assert changed == {"preprocess": ours, "datasets": {"*": ours, "cc_sbu": None, 3: []}}
