"""A config by its file, by the name of one that comes along, or by a checkpoint folder that holds it."""

import argparse
import re
from pathlib import Path

import pytest

from minigpt4.common.checksums import write_checksums
from minigpt4.common.errors import UserError
from minigpt4.config.arguments import add_config_arguments, add_model_arguments, read_config
from minigpt4.config.finding import find_config, packaged, run_configs
from minigpt4.config.loading import load_config, load_model_config, save_config
from tests.config.test_loading import CONFIGS, ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A folder as training writes it, of a model that began with weights and prompts that are gone."""
    folder = tmp_path / "run" / "checkpoint_best"
    folder.mkdir(parents=True)
    options = ["model.lora_r=4", "model.ckpt=/gone", "run.seed=7", "preprocess.n_frms=3"]
    save_config(load_config("minigpt4_tiny_stage2_finetune", options), folder / "config.yaml")
    (folder / "model.safetensors").write_bytes(b"")
    write_checksums(folder)
    return folder


def read(add, *arguments: str):
    parser = argparse.ArgumentParser()
    add(parser)
    return read_config(parser.parse_args(arguments))


def test_every_config_has_a_name():
    assert sorted(run_configs().values()) == sorted(CONFIGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minigpt4_tiny_stage1_pretrain", "minigpt4_tiny_stage1_pretrain.yaml"])
def test_a_name_is_found_from_anywhere_and_a_file_wins(name):
    assert find_config(name) == ROOT / "train_configs" / "minigpt4_tiny_stage1_pretrain.yaml"
    Path(name).write_text("model: {model_type: tiny, max_txt_len: 5}")
    assert load_config(name).model.max_txt_len == 5


@pytest.mark.parametrize(
    "name", ["minigpt4_tiny_evl", "minigpt4_tiny_evl.yaml", "eval_configs/minigpt4_tiny_eval.yaml"]
)
def test_an_unknown_name_is_reported_with_one_that_is_near(name):
    message = (
        f"^config '{name}' does not exist, .* Did you mean 'minigpt4_tiny_eval'\\? To list them: minigpt4 configs$"
    )
    with pytest.raises(UserError, match=message):
        load_config(name)


def test_a_name_that_no_file_can_have_is_reported_too():
    with pytest.raises(UserError, match="^config 'xxx.* does not exist, and none"):
        load_model_config("x" * 300)
    path = "prompts/" + "x" * 300
    assert load_config("minigpt4_tiny_eval", [f"model.prompt_path={path}"]).model.prompt_path == path


@pytest.mark.slow
def test_prompts_come_along_and_own_ones_win():
    assert load_config("minigpt4_tiny_stage2_finetune").model.prompt_path == str(ROOT / "prompts" / "alignment.txt")
    for path in ("prompts/own.txt", "alignment.txt"):  # there are none
        own = load_config("minigpt4_tiny_stage2_finetune", [f"model.prompt_path={path}"]).model.prompt_path
        assert own == path
    Path("prompts").mkdir()
    Path("prompts/alignment.txt").write_text("<Img><ImageHere></Img> Look.")
    assert load_config("minigpt4_tiny_stage2_finetune").model.prompt_path == "prompts/alignment.txt"


def test_folders_within_an_installed_package_come_first(tmp_path, monkeypatch):
    (tmp_path / "prompts").mkdir()
    monkeypatch.setattr("minigpt4.config.finding.PACKAGE", tmp_path)
    assert packaged("prompts") == tmp_path / "prompts"


@pytest.mark.slow
def test_a_saved_config_holds_from_any_folder_and_in_another_installation(tmp_path):
    Path("llm").mkdir()
    options = ["model.llama_model=llm", "model.vit_model=eva_clip_g", "model.q_former_model=not/there"]
    options += ['model.ckpt=["llm", "${env.package_dir}/assets/tiny/projection.safetensors"]']
    config = load_config("minigpt4_tiny_eval", options)
    save_config(config, "config.yaml")
    saved = load_config("config.yaml")
    assert saved.model.llama_model == str(tmp_path / "llm")
    assert saved.model.ckpts == [str(tmp_path / "llm"), config.model.ckpts[1]]
    assert (saved.model.vit_model, saved.model.q_former_model) == ("eva_clip_g", "not/there")
    assert saved.env == config.env and saved.run == config.run
    assert config.env.package_dir not in Path("config.yaml").read_text()


@pytest.mark.slow
def test_a_checkpoints_model_takes_the_place_of_a_configs(checkpoint):
    config = load_model_config("run/checkpoint_best", ["model.max_txt_len=5"], "minigpt4_tiny_benchmark")
    assert (config.model.lora_r, config.model.max_txt_len, config.preprocess.n_frms) == (4, 5, 3)
    assert config.model.ckpt == "run/checkpoint_best"
    assert (config.model.prompt_path, config.model.plain_text) == ("", None)  # of training
    assert config.run == load_config("minigpt4_tiny_benchmark").run
    assert config.evaluation_datasets.keys() == {"tiny_scenes"}
    assert load_model_config(checkpoint).run == load_config("minigpt4_tiny_eval").run
    assert load_model_config("minigpt4_tiny_eval") == load_config("minigpt4_tiny_eval")


@pytest.mark.slow
def test_a_mistake_is_reported_with_the_file_that_holds_it(checkpoint):
    (checkpoint / "checksums.json").unlink()
    file = checkpoint / "config.yaml"
    file.write_text(file.read_text().replace("lora_r:", "lora_s:"))
    with pytest.raises(UserError, match=f"^{file}: model.lora_s: .* Did you mean"):
        load_model_config(checkpoint)
    file.write_text("model: tiny")
    with pytest.raises(UserError, match=f"^{file}: model: expected keys and values below it, found 'tiny'.$"):
        load_model_config(checkpoint)
    file.write_text("model: {model_type: tiny}")
    Path("base.yaml").write_text("run: {sed: 1}")
    with pytest.raises(UserError, match="^base.yaml: run.sed: "):
        load_model_config(checkpoint, base="base.yaml")
    with pytest.raises(UserError, match="^--options: model.lora_r: the environment variable NO_SUCH is not set"):
        load_model_config(checkpoint, ["model.lora_r=${oc.env:NO_SUCH}"])


def test_a_damaged_config_is_not_used(checkpoint):
    file = checkpoint / "config.yaml"
    file.write_text(file.read_text().replace("lora_r: 4", "lora_r: 8"))
    with pytest.raises(UserError, match=f"^'{file}' can't be read as it was written: it is damaged"):
        load_model_config(checkpoint)


def test_a_folder_without_config_or_weights_is_reported_with_its_cure(checkpoint):
    run = checkpoint.parent
    with pytest.raises(UserError, match=f"^'{run}' is not a checkpoint: .* Name one in it, such as checkpoint_best.$"):
        load_model_config(run)
    (checkpoint / "config.yaml").unlink()
    with pytest.raises(UserError, match=f"^'{run}' is not a checkpoint: .* Name one that training wrote.$"):
        load_model_config(run)
    cure = f"--cfg-path {{}} --options model.ckpt={checkpoint}$"
    with pytest.raises(UserError, match=f"^'{checkpoint}' holds no config.yaml: .* {cure.format('FILE')}"):
        load_model_config(checkpoint)
    (run / "config.yaml").write_text("model: {model_type: tiny}")
    with pytest.raises(UserError, match=re.escape(cure.format(run / "config.yaml")[:-1])):
        load_model_config(checkpoint)


@pytest.mark.slow
def test_arguments_name_a_config_or_a_model(checkpoint):
    def of_model(parser):
        add_model_arguments(parser, "minigpt4_tiny_eval")

    assert read(of_model).model.model_type == "tiny"
    assert read(of_model, "minigpt4_tiny_stage1_pretrain").run.max_epoch == 5
    assert read(of_model, "--cfg-path", "minigpt4_tiny_stage1_pretrain").run.max_epoch == 5
    both = read(
        of_model, "run/checkpoint_best", "--cfg-path", "minigpt4_tiny_stage1_pretrain", "--options", "run.seed=1"
    )
    assert (both.run.max_epoch, both.run.seed, both.model.ckpt) == (5, 1, "run/checkpoint_best")
    with pytest.raises(
        UserError, match="^MODEL: 'minigpt4_eval' is not a checkpoint folder, so it names a config, and"
    ):
        read(of_model, "minigpt4_eval", "--cfg-path", "minigpt4_tiny_eval")
    with pytest.raises(
        UserError,
        match="^config 'run' is a folder. Name a YAML file; or, .*: minigpt4 chat run;.* minigpt4 doctor run$",
    ):
        read(add_config_arguments, "--cfg-path", "run")
    with pytest.raises(SystemExit):
        read(add_config_arguments)
