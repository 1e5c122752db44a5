"""What can't be a config is refused in one line that names the key, the value and the cure."""

import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config
from tests.config import STAGE1, write


def test_a_foreign_key_that_asks_for_what_there_is_not_is_refused(tmp_path):
    path = write(tmp_path, "model: {arch: minigpt4qwen, unfreeze_pos_embed: True}")
    with pytest.raises(UserError, match="model.unfreeze_pos_embed: True is not supported. Set it to False"):
        load_config(path)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["3", "[a, null]", "[a, '']", "[[a]]", "{a: b}", "True"])
def test_a_ckpt_that_is_no_path_is_refused(text):
    with pytest.raises(UserError, match=r"^model.ckpt: .* is not a path. Set it to a path, a list of paths, or null.$"):
        load_config(STAGE1, [f"model.ckpt={text}"])


@pytest.mark.slow
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
        ("modle: {ckpt: a}", ["modle: ", "unknown key. Did you mean 'model'? Known: datasets, "]),
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
        (
            "model: {model_type: tiny}\nrun: {betas: [0.9, 2]}",
            ["run.betas[1]: 2", "Set it to 0 or more and less than 1"],
        ),
        ("model: {model_type: tiny}\nrun: {init_lr: .inf}", ["run.init_lr: inf", "Set it to a finite number."]),
        ("model: {model_type: tiny}\nrun: {warmup_lr: .nan}", ["run.warmup_lr: nan", "Set it to a finite number."]),
        (
            "model: {model_type: tiny}\nrun: {max_epoch: 4000000001}",
            ["run.max_epoch: 4000000001", "4000000000"],
        ),
        ("model: {model_type: tiny}\nrun: {num_workers: 9999}", ["run.num_workers: 9999", "Set it to 0 to 1024."]),
        (
            "model: {model_type: tiny, image_size: 113}",
            ["model.image_size: 113 is not a multiple of model.vit"],
        ),
        ("model: {model_type: tiny, vit: {depth: 0}}", ["model.vit.depth: 0 is out of range. Set it to 1 or more."]),
        (
            "model: {model_type: tiny}\ndatasets: {laion: {vis_processor: {train: {std: [1, 0, 1]}}}}",
            ["datasets.laion.vis_processor.train.std[1]: 0.0 is out of range. Set it to more than 0."],
        ),
        ("model: {model_type: tiny}\nevaluation_datasets: {../x: {}}", ["evaluation_datasets: '../x'"]),
        ('model: {model_type: tiny}\nrun: {output_dir: "a\\0"}', ["run.output_dir: ", "holds a NUL character"]),
        ("model: {model_type: tiny, prompt_template: '{[a]}'}", ["model.prompt_template: '{[a]}'"]),
        ("model: {arch: ../models/mini_gpt4}", ["model.arch: '../models/mini_gpt4' is unknown"]),
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


def bomb(join: str) -> str:
    """Nine levels of nine aliases each; `join` makes a value of them."""
    levels = [f"{b}: &{b} {join % ','.join(9 * [f'*{a}'])}" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join(["a: &a {k: 1}", *levels])


TINY = "model: {model_type: tiny}\n"
HOSTILE = {  # what a file holds, and what is said of it
    "nested lists": ("[" * 100_000, "line 1: more than 50 groups or lists within one another"),
    "nested groups": ("{a: " * 3000 + "1" + "}" * 3000, "line 1: more than 50 groups or lists"),
    "long integer": (TINY + f"run: {{max_epoch: {'1' * 5000}}}", "line 2: a number of 5000 digits"),
    "long integer in quotes": (TINY + f"run: {{max_epoch: '{'1' * 4000}'}}", "line 2: a number of 4000 digits"),
    "long hexadecimal": (TINY + f"run: {{max_epoch: 0x{'f' * 5000}}}", "line 2: a number of 5002 digits"),
    "billion laughs": (bomb("[%s]"), "expansion exceeds"),
    "billion merges": (bomb("{<<: [%s]}"), "expansion exceeds"),
    "alias of itself": ("a: &a [*a]", "recursive aliases"),
    "key twice": (TINY + "run: {seed: 1, seed: 2}", "duplicate key seed"),
    "tab": ("run:\n\tseed: 1", "character '\\t'"),
    "NUL": (b"run: {seed: 1}\0", "unacceptable character #x0000"),
    "UTF-16": ("run: {seed: 1}".encode("utf-16"), "it is not UTF-8 text"),
    "Latin-1": (b"run: {output_dir: \xff}", "it is not UTF-8 text"),
    "Python": ("a: !!python/object/apply:os.system [id]", "'tag:yaml.org,2002:python/object/apply:os.system'"),
    "date": (TINY + "run: {output_dir: !!timestamp 2024-13-99}", "timestamp' has no meaning here"),
    "no bool": ("run: {amp: !!bool x}", "not valid YAML: 'x'"),
    "no number": ("run: {seed: !!int x}", "invalid literal"),
    "two documents": ("run: {seed: 1}\n---\nrun: {seed: 2}", "expected a single document"),
    "large file": ("a: " + "x" * 300_000, "more than 262144 bytes"),
    "long value": (TINY + f"run: {{seed: {'x' * 100_000}}}", "run.seed: Value 'xxx"),
    "long name": (f"model: {{arch: {'a' * 5000}}}", "model.arch: 'aaa"),
    "lines in a value": ('model: {arch: "a\\nb"}', "model.arch: 'a b' is unknown"),
    "beyond a float": (TINY + f"run: {{init_lr: {'1' * 99}, eps: '1e999'}}", "run.eps: inf"),
    "deep interpolation": (
        TINY + f"run: {{output_dir: '{'${' * 500}a{'}' * 500}'}}",
        "run.output_dir: maximum",
    ),
    "interpolation of itself": (TINY + "run: {output_dir: '${run.output_dir}'}", "run.output_dir: Recursive"),
    "cyclic interpolation": (
        TINY + "run: {output_dir: '${run.save_path}', save_path: '${run.output_dir}'}",
        "Recursive",
    ),
    "interpolation of nothing": (TINY + "datasets: {laion: {vis_processor: '${no}'}}", "laion.vis_processor: Interp"),
    "dataset of nothing": (TINY + "datasets: {laion: '${nowhere}'}", "datasets.laion: Interpolation key 'nowhere'"),
    "dataset of another kind": (
        TINY + "datasets: {laion: '${run}'}",
        "datasets.laion: ${run}: expected other keys and values than {'task'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_one_short_line(name, tmp_path):
    content, message = HOSTILE[name]
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load_config(path)
    assert message in str(error.value) and len(str(error.value)) <= 500 and len(str(error.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"run.betas={'[' * 5000}", "run.betas: line 1: more than 50 groups"),
        (f"run.seed={'1' * 5000}", "run.seed: line 1: a number of 5000 digits"),
        (f"run.seed=0x{'f' * 5000}", "run.seed: line 1: a number of 5002 digits"),
        ("run.seed=!!int x", "run.seed: invalid literal"),
        ("run.amp=!!bool x", "run.amp: 'x'"),
        ("run.betas[0]=1", "run.betas.0: 1: Cannot merge"),
        ("model.ckpt[x]=1", "model.ckpt"),
        (f"{'a.' * 3000}b=1", "a.a.a."),
        ("run.output_dir=a\0b", "run.output_dir: unacceptable character"),
        ("run.output_dir=\udcff", "run.output_dir: unacceptable character"),
        ("run.output_dir=${", "run.output_dir: "),
        ("run.init_lr=.inf", "run.init_lr: inf is out of range. Set it to a finite number."),
    ],
)
def test_hostile_options_give_one_short_line(option, message):
    with pytest.raises(UserError) as error:
        load_config(STAGE1, [option])
    assert message in str(error.value) and len(str(error.value)) <= 500 and len(str(error.value).splitlines()) == 1


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(g.name, k.name) for g in fields(Config) if is_dataclass(g.type) for k in fields(g.type)]))
def test_a_key_without_its_group_is_reported_where_it_belongs(place):
    group, key = place
    with pytest.raises(UserError, match=rf"^--options: {key}: .* Did you mean '{group}\.{key}'\?$"):
        load_config(STAGE1, [f"{key}=1"])


@pytest.mark.slow
@pytest.mark.parametrize("option", ["model.ckpt=${oc.env:NO_SUCH}/a", "model.ckpt=[a,${oc.env:NO_SUCH}/a]"])
def test_an_unset_variable_is_reported_with_where_it_is_used(option, tmp_path):
    message = ": the environment variable NO_SUCH is not set. Set it, or write a path."
    with pytest.raises(UserError, match=rf"^--options: model.ckpt(\[1\])?{message}$"):
        load_config(STAGE1, [option])
    with pytest.raises(UserError, match=rf"run.yaml: run.output_dir{message}$"):
        load_config(
            write(tmp_path, "model: {model_type: tiny}\nrun: {output_dir: '${oc.env:NO_SUCH}'}"), ["run.seed=1"]
        )


def test_a_number_of_preprocess_is_not_said_to_be_of_a_data_set():
    with pytest.raises(UserError, match="^preprocess.vis_processor.eval.min_scale: -1.0 is out of range"):
        load_config(STAGE1, ["preprocess.vis_processor.eval.min_scale=-1", "datasets.laion.sample_ratio=1"])


def test_weights_in_place_of_a_config(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xa0\x00")
    with pytest.raises(UserError, match="w.safetensors is not valid YAML: it is not UTF-8 text. Name a YAML"):
        load_config(tmp_path / "w.safetensors")


def test_text_that_yaml_takes_for_something_else():
    with pytest.raises(UserError, match=r"Put such text in quotes: \"x.prompt='...'\""):
        load_config(STAGE1, ["x.prompt=[vqa] {question}"])


def test_an_unknown_key_is_reported_with_those_that_are_known():
    with pytest.raises(UserError, match=r"^--options: model.foo: unknown key. Known: arch, ") as error:
        load_config(STAGE1, ["model.foo=1"])
    assert "ModelConfig" not in str(error.value)


@pytest.mark.parametrize("options", [["run.seed"], ["run.seed=1", "run.amp"], ["run.sed=1"], ["run.seed=x"]])
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match="--options"):
        load_config(STAGE1, options)


@pytest.mark.slow
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
