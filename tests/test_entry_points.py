"""The entry points tell all problems of device, model and data at once, before anything is loaded."""

import pytest

WRONG = ["run.device=npu", "model.vit_model=/no/vit", "model.q_former_model=/no/q", "model.llama_model=/no/llm"]
KEYS = ["run.device", "model.vit_model", "model.q_former_model", "model.llama_model"]


def keys_of(message: str) -> list[str]:
    return [line.split(": ")[0] for line in message.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "config", "options", "keys"),
    [
        (
            "train",
            "minigpt4_stage1_pretrain",
            ["run.valid_splits=[val]", "run.evaluate=True"],
            ["run.evaluate", "datasets.laion.build_info.storage", "datasets.cc_sbu.build_info.storage", "datasets"],
        ),
        (
            "evaluate",
            "minigpt4_tiny_benchmark",
            ["evaluation_datasets.tiny_scenes.eval_file_path=/no/questions"],
            ["evaluation_datasets.tiny_scenes.eval_file_path"],
        ),
    ],
)
def test_all_problems_are_reported_at_once(command, config, options, keys, minigpt4):
    code, _, err = minigpt4(command, "--cfg-path", config, "--options", *WRONG, *options)
    assert code == 2
    assert keys_of(err.partition("error: ")[2]) == [KEYS[0], *keys, *KEYS[1:]]


@pytest.mark.slow
def test_the_demo_tells_its_address_too(minigpt4):
    code, _, err = minigpt4("demo", "--port", "-1", "--options", *WRONG)
    assert code == 2 and keys_of(err.partition("error: ")[2]) == [
        "--host 127.0.0.1 --port -1",
        "model.vit_model",
        "model.q_former_model",
        "run.device",
        "model.llama_model",
    ]
