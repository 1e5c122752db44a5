"""Our recipes and model YAMLs hold the originals' values; what differs is named here."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from minigpt4.config.loading import load_config
from tests.config.test_loading import COMPAT, ROOT

TRAIN = {"run.device", "run.wandb_log", "run.job_name"}  # ours runs anywhere and logs to files
BATCH = {"run.batch_size_train"}  # says once what the final version says for each dataset
V1 = {"model.model_type", "model.conversation", "run.device"}  # ours is on the final version's model
LLAMA2 = TRAIN | {"run.output_dir"}  # the original's second recipe would overwrite the first's output
PLACES = {"model.llama_model", "model.q_former_model"}  # relative paths of its authors
EVAL = {"model.end_sym", "model.max_txt_len", "model.prompt_template"}  # of training: no chat reads them
QUERIES = {"conversation": "vicuna_v0", "has_qformer": True, "num_query_token": 32, "prompt_template": "{}"}
FINAL, OF_2023_05, QWEN = "final__{}", "2023_05__{}", "minigpt4qwen__lavis__{}"

RECIPES = [  # ours, theirs, the keys that differ
    ("train_configs/minigpt4_stage1_pretrain", FINAL.format("train_configs__minigpt4_stage1_pretrain"), TRAIN),
    ("train_configs/minigpt4_stage1_pretrain", OF_2023_05.format("train_configs__minigpt4_stage1_pretrain"), V1),
    (
        "train_configs/minigpt4_stage2_finetune",
        FINAL.format("train_configs__minigpt4_stage2_finetune"),
        TRAIN | BATCH | {"model.ckpt"},
    ),
    (
        "train_configs/minigpt4_stage2_finetune",
        OF_2023_05.format("train_configs__minigpt4_stage2_finetune"),
        V1 | {"model.ckpt", "run.batch_size_eval"},
    ),
    (
        "train_configs/minigpt4_llama2_stage1_pretrain",
        FINAL.format("train_configs__minigpt4_llama2_stage1_pretrain"),
        LLAMA2,
    ),
    (
        "train_configs/minigpt4_llama2_stage2_finetune",
        FINAL.format("train_configs__minigpt4_llama2_stage2_finetune"),
        LLAMA2 | BATCH | {"model.ckpt"},
    ),
    (
        "train_configs/minigpt4_qwen_finetune",
        QWEN.format("projects__instruction_tuning__train"),
        PLACES | {"run.device", "run.output_dir", "run.log_freq", "run.batch_size_eval"},
    ),
    (
        "train_configs/minigptv2_finetune",
        FINAL.format("train_configs__minigptv2_finetune"),
        LLAMA2 | {"model.llama_model", "model.ckpt"},
    ),
    ("eval_configs/minigpt4_eval", FINAL.format("eval_configs__minigpt4_eval"), EVAL),
    ("eval_configs/minigpt4_llama2_eval", FINAL.format("eval_configs__minigpt4_llama2_eval"), EVAL),
    ("eval_configs/minigptv2_eval", FINAL.format("eval_configs__minigptv2_eval"), {"model.max_txt_len"}),
]
MODELS = [  # arch, model type, their file, the keys that differ
    ("mini_gpt4", "pretrain_vicuna0", FINAL.format("minigpt4__configs__models__minigpt4_vicuna0"), set()),
    ("mini_gpt4", "pretrain_vicuna", OF_2023_05.format("minigpt4__configs__models__minigpt4"), {"model.llama_model"}),
    ("mini_gpt4", "pretrain_llama2", FINAL.format("minigpt4__configs__models__minigpt4_llama2"), set()),
    ("minigpt_v2", "pretrain", FINAL.format("minigpt4__configs__models__minigpt_v2"), set()),
    (
        "mini_gpt4",
        "pretrain_qwen",
        QWEN.format("configs__models__minigpt4qwen__minigpt4qwen"),
        # its training recipe says True; max_words changes nothing that the captions' processor does
        PLACES | {"model.device_map", "model.use_grad_checkpoint"},
    ),
]
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CODE = {  # what the originals' files leave to their code
    "pretrain_vicuna0": QUERIES | {"max_txt_len": 32, "end_sym": "\n", "lora_r": 0},
    "pretrain_vicuna": QUERIES | {"max_txt_len": 32, "end_sym": "\n", "conversation": "vicuna_v0_2023_05"},
    "pretrain_llama2": {"max_txt_len": 32, "end_sym": "\n", "conversation": "llama2", "has_qformer": False},
    "pretrain": {
        "conversation": "minigpt_v2",
        "has_qformer": False,
        "max_txt_len": 300,
        "end_sym": "</s>",
        "prompt_template": "[INST] {} [/INST]",
        "chat_template": False,
        "lora_r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
    },
    "pretrain_qwen": {
        "conversation": "chatml",
        "end_sym": "<|im_end|>\n",
        "prompt_template": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + CHATML,
        "turn_template": CHATML,
        "chat_template": True,
        "max_txt_len": 512,
        "lora_r": 0,
        "lora_alpha": 32,
    },
}


def leaves(node: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def different(ours: str, theirs: str, options: list[str]) -> set[str]:
    """Keys whose values differ. Batch sizes of datasets count as that of the run, as the runner takes them."""
    one, two = (load_config(path, options) for path in (ROOT / ours, COMPAT / f"{theirs}.yaml"))
    for config in (one, two):
        if not config.run.iters_per_epoch and not config.run.output_dir.startswith("output/"):
            config.datasets = {}  # the originals' eval configs name one, which no chat reads
        for dataset in config.datasets.values():
            dataset.batch_size = dataset.batch_size or config.run.batch_size_train
    found, recorded = dict(leaves(asdict(one))), dict(leaves(asdict(two)))
    return {key for key in found.keys() | recorded.keys() if found.get(key) != recorded.get(key)}


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs", "keys"), RECIPES, ids=lambda x: x if isinstance(x, str) else "")
def test_recipes_are_the_originals(ours, theirs, keys):
    assert different(f"{ours}.yaml", theirs, []) == keys


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "model_type", "theirs", "keys"), MODELS)
def test_models_are_the_originals(arch, model_type, theirs, keys):
    options = [f"model.arch={arch}", f"model.model_type={model_type}"]
    words = {f"preprocess.text_processor.{split}.max_words" for split in ("train", "eval")}
    assert different(f"minigpt4/config/defaults/models/{arch}/{model_type}.yaml", theirs, options) - words == keys
    model = load_config(ROOT / "minigpt4" / "config" / "defaults" / "default.yaml", options).model
    assert {key: getattr(model, key) for key in CODE[model_type]} == CODE[model_type]


@pytest.mark.slow
def test_minigpt_v2_s_recipe_names_all_paths_that_are_to_be_set(minigpt4, tmp_path):
    status, _, printed = minigpt4(
        "train", "--cfg-path", "minigptv2_finetune", "--options", f"run.output_dir={tmp_path}"
    )
    assert status == 2
    datasets = load_config(ROOT / "train_configs" / "minigptv2_finetune.yaml").datasets
    assert len(datasets) == 22
    missing = [f"datasets.{name}.build_info.storage: " for name in datasets] + ["model.ckpt: ", "model.llama_model: "]
    assert [key for key in missing if key not in printed] == []
