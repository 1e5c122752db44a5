"""load_config: the order of layers, defaults in one place, and errors that name the key, the value and the cure."""

import subprocess
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4.common.config import Config, load_config, save_config
from minigpt4.common.errors import UserError

ROOT = Path(__file__).parents[2]
STAGE1 = ROOT / "train_configs" / "minigpt4_tiny_stage1_pretrain.yaml"
CONFIGS = sorted(ROOT.glob("train_configs/*.yaml")) + sorted(ROOT.glob("eval_configs/*.yaml"))
COMPAT = Path(__file__).parents[1] / "fixtures" / "compat"  # the originals' files, unchanged


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS + sorted(COMPAT.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_loads_and_survives_saving(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_order_default_model_dataset_file_options(tmp_path):
    path = write(tmp_path, "model: {model_type: tiny, max_txt_len: 7}\ndatasets: {laion: {}}\nrun: {seed: 1}\n")
    config = load_config(path, ["run.seed=2"])
    assert config.model.arch == Config().model.arch  # a default of the dataclass
    assert config.preprocess.text_processor.train.name == "blip_caption"  # default.yaml
    assert config.model.image_size == 112  # the model's YAML
    assert "laion_dataset" in config.datasets["laion"].build_info.storage  # the dataset's YAML
    assert config.model.max_txt_len == 7  # the file
    assert config.run.seed == 2  # --options


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


def test_options_may_be_spelt_as_pairs():
    assert load_config(STAGE1, ["run.seed", "3", "model.max_txt_len", "9"]).run.seed == 3


@pytest.mark.parametrize(
    ("text", "ckpts"), [("null", []), ("''", []), ("a.pth", ["a.pth"]), ("[a.pth, b]", ["a.pth", "b"])]
)
def test_ckpt_is_one_path_or_a_list(text, ckpts, tmp_path):
    config = load_config(write(tmp_path, f"model: {{model_type: tiny, ckpt: {text}}}"))
    assert config.model.ckpts == ckpts
    assert load_config(STAGE1, [f"model.ckpt={text}"]).model.ckpt == config.model.ckpt
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_datasets_take_the_models_processors_unless_they_name_another(tmp_path):
    text = "model: {model_type: tiny}\ndatasets:\n  laion: {}\n  cc_sbu: {vis_processor: {train: {max_scale: 0.9}}}\n"
    text += "  cc_sbu_align: {vis_processor: {train: {name: blip2_image_eval, image_size: 112}}}\n"
    config = load_config(write(tmp_path, text))
    laion, cc, align = (config.datasets[n].vis_processor.train for n in ("laion", "cc_sbu", "cc_sbu_align"))
    assert (laion.name, laion.image_size, laion.random_resized_crop) == ("blip2_image_train", 112, False)
    assert (cc.image_size, cc.max_scale, cc.random_resized_crop) == (112, 0.9, False)
    assert align.kwargs() == {"image_size": 112}


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


def test_a_foreign_key_that_asks_for_what_there_is_not_is_refused(tmp_path):
    path = write(tmp_path, "model: {arch: minigpt4qwen, unfreeze_pos_embed: True}")
    with pytest.raises(UserError, match="model.unfreeze_pos_embed: True is not supported. Set it to False"):
        load_config(path)


def test_environment_variables_work_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/mnt/w")
    path = write(tmp_path, "model: {model_type: tiny, ckpt: '${oc.env:WEIGHTS}/p.pth'}")
    assert load_config(path).model.ckpt == "/mnt/w/p.pth"


@pytest.mark.parametrize(
    "text", ['["${oc.env:WEIGHTS}/a", b]', "[${oc.env:WEIGHTS}/a,b]", "[ ${oc.env:WEIGHTS}/a , b]"]
)
def test_environment_variables_work_in_lists(text, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/mnt/w")
    config = load_config(STAGE1, [f"model.ckpt={text}", "run.output_dir=${oc.env:WEIGHTS}"])
    assert (config.model.ckpts, config.run.output_dir) == (["/mnt/w/a", "b"], "/mnt/w")
    package = write(tmp_path, 'model: {model_type: tiny, ckpt: ["${env.package_dir}/a", "${oc.env:WEIGHTS}/b"]}')
    assert load_config(package).model.ckpt == [f"{config.env.package_dir}/a", "/mnt/w/b"]


@pytest.mark.parametrize("text", ["3", "[a, null]", "[a, '']", "[[a]]", "{a: b}", "True"])
def test_a_ckpt_that_is_no_path_is_refused(text):
    with pytest.raises(UserError, match=r"^model.ckpt: .* is no path. Set it to a path, a list of paths, or null.$"):
        load_config(STAGE1, [f"model.ckpt={text}"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {model_type: tiny}\nrun: {batch_size_trian: 4}", ["run.batch_size_trian", "batch_size_train"]),
        ("model: {model_type: tiny}\nrun: {max_epoch: many}", ["run.max_epoch", "many"]),
        ("model: {model_type: tiny, vit: {dpeth: 3}}", ["model.vit.dpeth", "depth"]),
        (
            "model: {model_type: tiny, vit_precision: fp8}",
            ["model.vit_precision: 'fp8' is unknown. Known: bf16, fp16, fp32."],
        ),
        ("model: {model_type: tiny, vit_precision: '${model.arch}'}", ["vit_precision: 'mini_gpt4' is unknown"]),
        ("model: {model_type: tiny, quantization: 8bits}", ["model.quantization: '8bits'", "Did you mean '8bit'?"]),
        ("model: {model_type: tiny, llm_dtype: 16}", ["model.llm_dtype: '16' is unknown", "Known: auto, bf16, "]),
        ("model: {model_type: tiny, conversation: tinny}", ["model.conversation: 'tinny' is", "Did you mean 'tiny'?"]),
        ("run: {valid_splits: [vall]}", ["run.valid_splits[0]: 'vall' is unknown", "Did you mean 'val'?"]),
        ("run: {controls: [blank_image]}", ["run.controls[0]: 'blank_image'", "Did you mean 'blank_images'?"]),
        ("max_epoch: 1", ["max_epoch: ", "Did you mean 'run.max_epoch'?"]),
        ("modle: {ckpt: a}", ["modle: ", "Did you mean: 'model'?"]),
        ("model: {max_epoch: 1}", ["model.max_epoch: ", "Did you mean 'run.max_epoch'?"]),
        ("model: {model_type: tiny, vit_precision: FP16}", ["model.vit_precision: 'FP16'", "Did you mean 'fp16'?"]),
        ("run: 3", ["run.yaml: run: expected keys and values below it, found '3'."]),
        ("run: []", ["run.yaml: run: expected keys and values below it, found '[]'."]),
        ("model: {model_type: tiny, vit: 3}", ["model.vit: expected keys and values below it, found '3'."]),
        ("datasets: {laion: 3}", ["datasets.laion: expected keys and values below it, found '3'."]),
        ("datasets: {laion: {build_info: x}}", ["datasets.laion.build_info: expected keys and values below it, found"]),
        ("evaluation_datasets: {x: 3}", ["evaluation_datasets.x: expected keys and values below it, found '3'."]),
        ("run: {betas: [0.9]}", ["run.yaml: run.betas: [0.9]: expected 2 values, found 1"]),
        ("run: {betas: [0.9, a]}", ["run.yaml: run.betas: [0.9, 'a']: a value in it could not be converted to Float"]),
        ("model: {model_type: tinny}", ["model.model_type", "tinny", "Did you mean 'tiny'"]),
        ("model: {arch: mini_gpt5}", ["model.arch", "mini_gpt5", "Did you mean"]),
        ("model: {model_type: tiny}\ndatasets: {lion: {}}", ["datasets.lion", "Did you mean 'laion'"]),
        ("model: {model_type: tiny, ckpt: '${nowhere.at_all}'}", ["nowhere"]),
        ("model: [1, 2", ["not valid YAML"]),
        ("- a list", ["expected groups"]),
        ("model: {model_type: tiny, arch: {x: 3}}", ["model.arch: expected a name"]),
        ("model: 5", ["model: expected keys and values below it, found '5'"]),
        ("datasets: [laion]", ["datasets: expected keys"]),
        ("datasets: laion", ["datasets: expected keys"]),
        ("datasets: {3: {}}", ["datasets: expected a name, found '3'"]),
        ("model: {arch: [1]}", ["model.arch: expected a name"]),
        ("model: {arch: null}", ["model.arch: expected a name, found 'None'"]),
        ("model: {model_type: 3}", ["model.model_type: expected a name, found '3'"]),
        ("model: {arch: '${nowhere}'}", ["model.arch"]),
        ("model: {model_type: tiny}\nrun: {log_freq: 0}", ["run.log_freq: 0 is out of range. Set it to 1 or more"]),
        ("model: {model_type: tiny}\nrun: {iters_per_epoch: 0}", ["run.iters_per_epoch: 0 is out of range"]),
        ("model: {model_type: tiny}\nrun: {seed: -1}", ["run.seed: -1 is out of range. Set it to 0 or more"]),
        ("model: {model_type: tiny}\nrun: {keep_last: 0}", ["run.keep_last: 0 is out of range"]),
        ("model: {model_type: tiny}\nrun: {max_bad_steps: 0}", ["run.max_bad_steps: 0 is out of range"]),
        ("model: {model_type: tiny}\nrun: {init_lr: -1}", ["run.init_lr: -1", "Set it to more than 0"]),
        ("model: {model_type: tiny}\nrun: {max_grad_norm: 0}", ["run.max_grad_norm: 0", "Set it to more than 0"]),
        ("model: {model_type: tiny}\nrun: {max_skip_rate: 5}", ["run.max_skip_rate: 5", "Set it to 0 to 1"]),
        ("model: {model_type: tiny}\nrun: {betas: [0.9, 2]}", ["run.betas[1]: 2", "Set it to 0 to 1"]),
        ("model: {model_type: tiny}\nrun: {zero_stage: 4}", ["run.zero_stage", "'4' is unknown", "Known: 0, 1, 2, 3."]),
        ("model: {model_type: tiny}\ndatasets: {cc_sbu: {sample_ratio: 0}}", ["datasets.cc_sbu.sample_ratio: 0"]),
        ("model: {model_type: tiny, lora_r: -1}", ["model.lora_r: -1 is out of range"]),
        ("model: {model_type: tiny, prompt_template: 'a {x} {}'}", ["model.prompt_template: 'a {x} {}'"]),
        (
            "model: {model_type: tiny}\ndatasets: {laion: {vis_processor: {train: {image_size: 224}}}}",
            ["datasets.laion.vis_processor.train.image_size: 224, but model.image_size is 112. Remove the first."],
        ),
        ("", []),
    ],
)
def test_wrong_files_give_one_clear_line(text, parts, tmp_path):
    path = write(tmp_path, text)
    if not parts:  # an empty file is a run with nothing but defaults
        assert load_config(path).run.seed == Config().run.seed
        return
    with pytest.raises(UserError) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(g.name, k.name) for g in fields(Config) if is_dataclass(g.type) for k in fields(g.type)]))
def test_a_key_without_its_group_is_told_where_it_belongs(place):
    group, key = place
    with pytest.raises(UserError, match=rf"^--options: {key}: .* Did you mean '{group}\.{key}'\?$"):
        load_config(STAGE1, [f"{key}=1"])


def test_empty_groups_have_no_keys(tmp_path):
    config = load_config(
        write(tmp_path, "model: {model_type: tiny, vit: null}\nrun:\ndatasets: {laion: null}"), ["preprocess="]
    )
    assert config == load_config(write(tmp_path, "model: {model_type: tiny}\ndatasets: {laion: {}}"))


@pytest.mark.parametrize("option", ["model.ckpt=${oc.env:NO_SUCH}/a", "model.ckpt=[a,${oc.env:NO_SUCH}/a]"])
def test_an_unset_variable_is_told_with_where_it_is_used(option, tmp_path):
    told = ": the environment variable NO_SUCH is not set. Set it, or write a path."
    with pytest.raises(UserError, match=rf"^--options: model.ckpt(\[1\])?{told}$"):
        load_config(STAGE1, [option])
    with pytest.raises(UserError, match=rf"run.yaml: run.output_dir{told}$"):
        load_config(
            write(tmp_path, "model: {model_type: tiny}\nrun: {output_dir: '${oc.env:NO_SUCH}'}"), ["run.seed=1"]
        )


@pytest.mark.parametrize("options", [["run.seed"], ["run.seed=1", "run.amp"], ["run.sed=1"], ["run.seed=x"]])
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match="--options"):
        load_config(STAGE1, options)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_as_a_file_loads_or_is_a_user_error(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_config(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "demo.py"])
def test_entry_points_help_is_instant_and_errors_exit_with_2(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and "--cfg-path" in shown.stdout
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "minigpt4.common.cli" in imported
    assert not imported & {"torch", "transformers", "numpy", "PIL", "gradio"}  # which take seconds
    wrong = subprocess.run(
        [sys.executable, script, "--cfg-path", "no/such.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "error: config file 'no/such.yaml' does not exist. Start from the repository's folder, or set --cfg-path."
    ]
