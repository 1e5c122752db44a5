"""check_names: what nothing is registered under is refused, with its key, before anything is loaded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.loading import load_config
from minigpt4.config.names import check_names
from minigpt4.config.schema import Config
from tests.config import COMPAT, CONFIGS, STAGE1

NAMES = {
    "run.lr_sched": "linear_warmup_cosine_lr",
    "run.task": "image_text_pretrain",
    "run.runner": "runner_base",
    "model.vision.name": "eva_patches",
    "model.projection.name": "linear",
    "preprocess.vis_processor.eval.name": "blip2_image_eval",
    "preprocess.text_processor.train.name": "blip_caption",
    "datasets.cc_sbu.vis_processor.train.name": "blip2_image_train",
    "datasets.cc_sbu.text_processor.eval.name": "blip_caption",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS + sorted(COMPAT.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_names_what_there_is(path):
    config = load_config(path)
    check_names(config)
    found = [registry.get("model", config.model.arch), registry.get("task", config.run.task)]
    for name, block in config.datasets.items():
        found.append(registry.get("format", block.format) if block.format else registry.get("builder", name))
    assert all(isinstance(named, type) for named in found)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(NAMES)), min_size=1), st.integers(0, 9))
def test_all_typos_are_reported_in_one_line_each_with_key_and_cure(keys, cut):
    typo = {key: f"{NAMES[key][:cut]}q{NAMES[key][cut + 1 :]}" for key in keys}
    with pytest.raises(UserError) as error:
        check_names(load_config(STAGE1, [f"{key}={value}" for key, value in typo.items()]))
    lines = str(error.value).splitlines()
    for key, value in typo.items():
        (line,) = (line for line in lines if line.startswith(f"{key}: "))
        assert f"'{value}' is not a registered" in line and f"Did you mean '{NAMES[key]}'?" in line


@pytest.mark.slow
def test_a_typo_of_the_default_is_reported_once_and_not_for_each_dataset():
    with pytest.raises(UserError) as error:
        check_names(load_config(STAGE1, ["preprocess.vis_processor.train.name=x", "datasets.laion.sample_ratio=1"]))
    assert str(error.value).count("not a registered") == 1


@pytest.mark.slow
def test_a_key_that_the_processor_does_not_take_is_named():
    with pytest.raises(UserError, match="^datasets.cc_sbu.text_processor.train: processor blip_caption: .*'max_scale'"):
        check_names(load_config(STAGE1, ["datasets.cc_sbu.text_processor.train.max_scale=0.5"]))


@pytest.mark.slow
def test_a_key_that_the_vision_part_does_not_read_is_named():
    options = ["model.vision.name=eva_patches", "model.vision.join=2", "model.vision.layer=-2", "model.vision.model=x"]
    with pytest.raises(UserError) as error:
        check_names(load_config(STAGE1, options))
    expected = [f"model.vision.{key}: eva_patches does not read it. Remove that key." for key in ("model", "layer")]
    assert str(error.value).splitlines() == expected


def test_names_without_a_config_folder_are_refused_too():
    config = Config()
    config.model.arch = "mini_gpt5"
    with pytest.raises(UserError, match="model.arch: 'mini_gpt5' is not a registered model. Did you mean 'mini_gpt4'"):
        check_names(config)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate", "demo"])
@pytest.mark.parametrize("key", ["run.task", "preprocess.vis_processor.eval.name", "model.conversation"])
def test_entry_points_check_names_before_device_data_and_weights(command, key, minigpt4):
    nothing = ["model.model_type=pretrain_vicuna0", "model.vit_model=no/such/file", "run.device=no_such_device"]
    code, _, err = minigpt4(command, "--cfg-path", STAGE1, "--options", *nothing, f"{key}=blip2_imag_eval")
    assert code == 2 and err.startswith(f"error: {key}: 'blip2_imag_eval' is ")
