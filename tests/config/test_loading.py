"""load_config: the order of layers, defaults in one place, what is saved; and entry points whose help is instant."""

import copy
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import yaml

from minigpt4.config import schema
from minigpt4.config.compat import translate
from minigpt4.config.loading import load_config, save_config
from minigpt4.config.ranges import FINITE, range_of
from tests.config import COMPAT, CONFIGS, ROOT, STAGE1, write


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS + sorted(COMPAT.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads_and_survives_saving(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.slow
def test_order_default_model_dataset_file_options(tmp_path):
    path = write(tmp_path, "model: {model_type: tiny, max_txt_len: 7}\ndatasets: {laion: {}}\nrun: {seed: 1}\n")
    config = load_config(path, ["run.seed=2"])
    assert config.model.arch == schema.Config().model.arch  # a default of the dataclass
    assert config.preprocess.text_processor.train.name == "blip_caption"  # default.yaml
    assert config.model.image_size == 112  # the model's YAML
    assert "laion_dataset" in config.datasets["laion"].build_info.storage  # the dataset's YAML
    assert config.model.max_txt_len == 7  # the file
    assert config.run.seed == 2  # --options


@pytest.mark.slow
def test_the_home_folder_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = ["run.output_dir=~/out", "datasets.cc_sbu.build_info.storage=~/d/0.tar", "model.llama_model=~/llm"]
    config = load_config(STAGE1, options)
    storage = config.datasets["cc_sbu"].build_info.storage
    assert (config.run.output_dir, storage, config.model.llama_model) == (
        "/home/me/out",
        "/home/me/d/0.tar",
        "/home/me/llm",
    )


@pytest.mark.slow
def test_options_may_be_spelt_as_pairs():
    assert load_config(STAGE1, ["run.seed", "3", "model.max_txt_len", "9"]).run.seed == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ckpts"), [("null", []), ("''", []), ("a.pth", ["a.pth"]), ("[a.pth, b]", ["a.pth", "b"])]
)
def test_ckpt_is_one_path_or_a_list(text, ckpts, tmp_path):
    config = load_config(write(tmp_path, f"model: {{model_type: tiny, ckpt: {text}}}"))
    assert config.model.ckpts == ckpts
    assert load_config(STAGE1, [f"model.ckpt={text}"]).model.ckpt == config.model.ckpt
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.slow
def test_datasets_take_the_models_processors_unless_they_name_another(tmp_path):
    text = "model: {model_type: tiny}\ndatasets:\n  laion: {}\n  cc_sbu: {vis_processor: {train: {max_scale: 0.9}}}\n"
    text += "  cc_sbu_align: {vis_processor: {train: {name: blip2_image_eval, image_size: 112}}}\n"
    config = load_config(write(tmp_path, text))
    laion, cc, align = (config.datasets[n].vis_processor.train for n in ("laion", "cc_sbu", "cc_sbu_align"))
    assert (laion.name, laion.image_size, laion.random_resized_crop) == ("blip2_image_train", 112, False)
    assert (cc.image_size, cc.max_scale, cc.random_resized_crop) == (112, 0.9, False)
    assert align == schema.ProcessorConfig("blip2_image_eval", image_size=112)


@pytest.mark.slow
def test_minigpt4qwens_spellings_become_ours():
    one = load_config(COMPAT / "minigpt4qwen__lavis__projects__instruction_tuning__train.yaml")
    assert (one.model.arch, one.model.model_type, one.model.conversation) == ("mini_gpt4", "pretrain_qwen", "chatml")
    assert one.model.llama_model == "ckpt/Qwen7B-chat"
    assert one.model.q_former_model == "ckpt/blip2/blip2_pretrained_flant5xxl.pth"
    assert (one.model.lora_r, one.model.ckpt, one.model.max_txt_len) == (0, None, 256)
    assert (one.run.max_grad_norm, one.run.accum_grad_iters) == (1.0, 16)
    assert one.datasets["minigpt4_instruction"].text_processor.train.name == "base_instruction"
    two = load_config(COMPAT / "minigpt4qwen__lavis__projects__deepspeed__train_zero2_3090x4.yaml")
    assert (two.run.runner, two.run.task) == ("runner_base", "image_text_pretrain")
    assert (two.run.max_grad_norm, two.run.accum_grad_iters, two.run.batch_size_train) == (1.0, 16, 2)
    assert (two.run.init_lr, two.run.betas, two.run.amp) == (1e-4, (0.9, 0.99), True)
    assert two.run.eps == 1e-7


def test_environment_variables_work_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/mnt/w")
    path = write(tmp_path, "model: {model_type: tiny, ckpt: '${oc.env:WEIGHTS}/p.pth'}")
    assert load_config(path).model.ckpt == "/mnt/w/p.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ['["${oc.env:WEIGHTS}/a", b]', "[${oc.env:WEIGHTS}/a,b]", "[ ${oc.env:WEIGHTS}/a , b]"]
)
def test_environment_variables_work_in_lists(text, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/mnt/w")
    config = load_config(STAGE1, [f"model.ckpt={text}", "run.output_dir=${oc.env:WEIGHTS}"])
    assert (config.model.ckpts, config.run.output_dir) == (["/mnt/w/a", "b"], "/mnt/w")
    package = write(tmp_path, 'model: {model_type: tiny, ckpt: ["${env.package_dir}/a", "${oc.env:WEIGHTS}/b"]}')
    assert load_config(package).model.ckpt == [f"{config.env.package_dir}/a", "/mnt/w/b"]


def test_every_number_has_a_range():
    """A new key of `config.schema` has a type of `config.ranges`, unless any finite number will do."""
    groups = [group for group in vars(schema).values() if is_dataclass(group)]
    ranges = {
        f"{group.__name__}.{field.name}": range_of(field.type)
        for group in groups
        for field in fields(group)
        if re.search(r"\b(int|float)\b", str(field.type))
    }
    assert ranges["RunConfig.init_lr"].words == ranges["ProcessorConfig.std"].words == "more than 0"
    any_number = {key for key, own in ranges.items() if own is FINITE}
    assert any_number == {"VisionConfig.layer", "RunConfig.warmup_lr", "ProcessorConfig.mean"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(COMPAT.glob("*.yaml")), ids=lambda p: p.name)
def test_keys_without_effect_are_not_saved(path, tmp_path):
    save_config(load_config(path), tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "world_size" not in saved["run"] and "distributed" not in saved["run"]
    assert translate("config.yaml", copy.deepcopy(saved)) == saved  # which removes all of them


@pytest.mark.slow
def test_empty_groups_have_no_keys(tmp_path):
    config = load_config(
        write(tmp_path, "model: {model_type: tiny, vit: null}\nrun:\ndatasets: {laion: null}"), ["preprocess="]
    )
    assert config == load_config(write(tmp_path, "model: {model_type: tiny}\ndatasets: {laion: {}}"))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "demo.py"])
def test_entry_points_help_is_instant_and_errors_exit_with_2(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "--cfg-path" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "minigpt4.common.command_line" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "gradio"}  # which take seconds
    wrong = subprocess.run(
        [sys.executable, script, "--cfg-path", "no/such.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "error: config 'no/such.yaml' does not exist, and none that comes with minigpt4 has that name. To list them: "
        "minigpt4 configs"
    ]
