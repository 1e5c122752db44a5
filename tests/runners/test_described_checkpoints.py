"""A checkpoint describes itself: from its folder alone the model is built again, wherever one is."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import minigpt4 as api
from minigpt4.models.checkpoint import file_name
from minigpt4.models.weight_file import load_tensors
from minigpt4.tiny.data import write_all
from tests.runners.run_strategies import options_of
from tests.runners.toy import toy_runner
from tests.serve.predicting import COUNT, SCENES, lines


@pytest.mark.slow
def test_a_model_is_built_from_a_folder_though_what_training_began_with_is_gone(tmp_path, monkeypatch, minigpt4):
    write_all(tmp_path / "data", seed=1, scale=0.05)
    projection, prompts = tmp_path / "projection.safetensors", tmp_path / "prompts.txt"
    shutil.copy(Path(api.__path__[0], "assets", "tiny", "projection.safetensors"), projection)
    prompts.write_text("<Img><ImageHere></Img> Look.")
    options = [*options_of("ddp", tmp_path / "data", tmp_path), "run.max_epoch=1", "run.iters_per_epoch=2"]
    options += [f"model.ckpt={projection}", f"model.prompt_path={prompts}", "model.unfreeze=[qformer]"]
    options += ["run.valid_splits=[]"]
    code, _, err = minigpt4("train", "--cfg-path", "minigpt4_tiny_stage2_finetune", "--options", *options)
    assert code == 0, err
    projection.unlink()
    prompts.unlink()

    monkeypatch.chdir(tmp_path / "ddp")
    model = api.load_model("checkpoint_best", ["run.device=cpu"]).model
    weights = load_tensors("checkpoint_best")
    own = {file_name(name): value for name, value in model.named_parameters()}
    assert {name.split(".")[0] for name in weights} == {"Qformer", "query_tokens", "llama_proj", "llama_model"}
    assert all(torch.equal(own[name], value) for name, value in weights.items())

    code, out, err = minigpt4("predict", "checkpoint_best", "--image", SCENES[0], "--text", COUNT)
    assert code == 0, err
    assert lines(out)[0]["answer"]
    code, _, err = minigpt4("chat", "checkpoint_best", "--options", "model.lora_r=4")
    assert code == 2 and "set model.lora_r=2" in err


@pytest.mark.slow
def test_every_checkpoint_of_a_run_holds_the_config_as_it_was_then(tmp_path):
    toy_runner(tmp_path, max_epoch=1, save_steps=4).train()
    toy_runner(tmp_path, max_epoch=2, save_steps=4, init_lr=1e-3, resume="auto").train()
    files = tmp_path.glob("checkpoint_*/config.yaml")
    rates = {file.parent.name: yaml.safe_load(file.read_text())["run"]["init_lr"] for file in files}
    early, late = ("checkpoint_step_4", "checkpoint_0"), ("checkpoint_step_12", "checkpoint_1", "checkpoint_best")
    assert rates == dict.fromkeys(early, 0.01) | dict.fromkeys(late, 0.001)


@pytest.mark.slow
def test_a_run_continues_from_a_checkpoint_without_a_config(tmp_path):
    """An earlier version's, with the validation of its epoch still to be made."""
    toy_runner(tmp_path, max_epoch=1, valid=True).train()
    for file in (*tmp_path.glob("checkpoint_*/config.yaml"), *tmp_path.glob("checkpoint_*/*s.json")):
        file.unlink()
    toy_runner(tmp_path, max_epoch=1, valid=True, resume="auto").train()
    assert (tmp_path / "checkpoint_best" / "config.yaml").is_file()
