"""Towers of Hugging Face, tiny and random: all that a user does with a vision part, and what is refused."""

import io
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.names import check_names
from minigpt4.config.schema import Config, ModelConfig, ProjectionConfig, VisionConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.vision import build_vision
from minigpt4.models.vision.part import VisionPart
from minigpt4.processors.image import Blip2ImageEvalProcessor
from minigpt4.tiny.data import write_all

ROOT = Path(__file__).parents[3]
SIZE, ROWS = 56, 16
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
VIT = SIZES | {"image_size": SIZE, "patch_size": 14}
TEXT = SIZES | {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
SQUARE = {"size": {"height": SIZE, "width": SIZE}}
CROPPED = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE["size"]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TOWERS = {  # as released: with the text model where there is one; DINOv2 is trained with larger pictures
    "clip": lambda: (CLIPModel(CLIPConfig(vision_config=VIT, text_config=TEXT)), CLIPImageProcessor(**CROPPED)),
    "clip_alone": lambda: (CLIPVisionModel(CLIPVisionConfig(**VIT)), CLIPImageProcessor(**CROPPED)),
    "siglip": lambda: (SiglipModel(SiglipConfig(vision_config=VIT, text_config=TEXT)), SiglipImageProcessor(**SQUARE)),
    "siglip2": lambda: (
        Siglip2Model(Siglip2Config(vision_config=SIZES | {"num_patches": ROWS, "patch_size": 14}, text_config=TEXT)),
        Siglip2ImageProcessor(patch_size=14, max_num_patches=ROWS),
    ),
    "dinov2": lambda: (
        Dinov2Model(Dinov2Config(**VIT | {"image_size": 70})),
        BitImageProcessor(**CROPPED, **IMAGENET),
    ),
    "dinov2_registers": lambda: (
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, num_register_tokens=4)),
        BitImageProcessor(**CROPPED, **IMAGENET),
    ),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    for seed, (name, make) in enumerate(TOWERS.items()):
        torch.manual_seed(seed)
        for part in make():
            part.save_pretrained(folder / name)
    return {name: folder / name for name in TOWERS}


def config_of(folder: Path, **settings) -> Config:
    vision = VisionConfig("huggingface", str(folder), **settings)
    return Config(model=ModelConfig(image_size=SIZE, vit_precision="fp32", vision=vision))


def part_of(config: Config) -> VisionPart:
    part = build_vision(config)
    part.load(config, {})
    return part.eval()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", TOWERS)
def test_features_are_the_patches_of_what_its_own_library_computes(name, towers):
    """Of a picture that needs no resizing, which is where image processors differ from ours."""
    part = part_of(config_of(towers[name]))
    inputs = AutoImageProcessor.from_pretrained(towers[name])(picture(), return_tensors="pt")
    output = part.tower(**inputs, output_hidden_states=True)
    features = part(Blip2ImageEvalProcessor(SIZE)(picture())[None])
    assert (part.rows, part.width) == (ROWS, 32) and features.shape == (1, ROWS, 32)
    torch.testing.assert_close(features, output.last_hidden_state[:, -ROWS:], atol=1e-4, rtol=0)
    below = part_of(config_of(towers[name], layer=-2, join=4))(Blip2ImageEvalProcessor(SIZE)(picture())[None])
    expected = output.hidden_states[-2][:, -ROWS:].reshape(1, 4, 128)
    torch.testing.assert_close(below, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2"])
def test_half_precision_is_close_and_leaves_the_rest_in_full(name, towers):
    images = torch.randn(2, 3, SIZE, SIZE)
    config = config_of(towers[name])
    exact = part_of(config)(images)
    for precision in ("bf16", "fp16"):
        half = part_of(replace(config, model=replace(config.model, vit_precision=precision)))
        with torch.inference_mode():
            features = half(images)
        assert features.dtype == torch.float32 and len({p.dtype for p in half.parameters()}) == 2
        torch.testing.assert_close(features, exact, atol=0.15, rtol=0.05)


@pytest.mark.slow
def test_pictures_that_were_normalised_otherwise_come_out_the_same(towers):
    config = config_of(towers["siglip"])
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    usual = part_of(config)(Blip2ImageEvalProcessor(SIZE)(picture())[None])
    config.preprocess.vis_processor.eval.mean, config.preprocess.vis_processor.eval.std = mean, std
    other = part_of(config)(Blip2ImageEvalProcessor(SIZE, mean, std)(picture())[None])
    torch.testing.assert_close(usual, other, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_all(folder, seed=1, scale=0.01)
    return folder


def train(monkeypatch, config: str, *options: str) -> None:
    command = ["train.py", "--cfg-path", f"train_configs/minigpt4_tiny_{config}.yaml", "--options", *options]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path("train.py", run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", ["model.projection.name=mlp", "model.vision.layer=-2"]),
        ("siglip", ["model.vision.join=4"]),
        ("siglip2", ["model.projection.name=mlp", "model.vit_precision=bf16"]),
        ("dinov2", []),
    ],
)
def test_both_stages_a_cache_a_checkpoint_and_a_chat(
    name, options, towers, data, tmp_path, monkeypatch, minigpt4, capsys
):
    monkeypatch.chdir(ROOT)
    tower = ["model.vision.name=huggingface", f"model.vision.model={towers[name]}", f"model.image_size={SIZE}"]
    tower += options
    short = ["run.max_epoch=1", "run.iters_per_epoch=3", "run.batch_size_train=4", "run.num_workers=0"]
    short.append("run.valid_splits=[]")
    stages = {"stage1_pretrain": ("cc_sbu", "stage1"), "stage2_finetune": ("cc_sbu_align", "stage2")}
    checkpoint = "null"
    for config, (dataset, folder) in stages.items():
        out, place = tmp_path / folder, f"datasets.{dataset}.build_info.storage={data}/{folder}"
        cache = [f"run.cache_features={tmp_path}/cache"] if folder == "stage2" else []  # shards have no length
        train(monkeypatch, config, *tower, place, *short, *cache, f"model.ckpt={checkpoint}", f"run.output_dir={out}")
        checkpoint = str(out / "checkpoint_0")
        assert any(json.loads(line).get("train_loss") for line in (out / "log.txt").read_text().splitlines())

    saved = load_file(tmp_path / "stage2" / "checkpoint_0" / "model.safetensors")
    assert all(key.startswith("llama_proj.") for key in saved)
    config = load_config(tmp_path / "stage2" / "config.yaml", [f"model.ckpt={checkpoint}"])
    capsys.readouterr()
    model = MiniGPT4.from_config(config).eval()
    err = capsys.readouterr().err
    assert (
        f"vision.tower: from {towers[name]}, not from a checkpoint" in err
        and "LOAD REPORT" not in err
        and "WARN" not in err
    )
    assert all(torch.equal(model.projection.get_parameter(k.removeprefix("llama_proj.")), v) for k, v in saved.items())
    features = load_file(next((tmp_path / "cache").glob("train-*.safetensors")))
    assert {tuple(f.shape[-2:]) for f in features.values()} == {(model.vision.rows, model.vision.width)}

    picture().save(tmp_path / "picture.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f":img {tmp_path}/picture.png\nWhat?\n".encode())))
    said = ["--cfg-path", "eval_configs/minigpt4_tiny_eval.yaml", "--options", *tower, f"model.ckpt={checkpoint}"]
    code, _, err = minigpt4("chat", *said)
    assert code == 0, err


EXAMPLE = "train_configs/minigpt4_huggingface_stage1_pretrain.yaml"


@pytest.mark.slow
def test_the_example_is_a_yaml_that_names_the_tower(towers, parity_config):
    config = load_config(EXAMPLE, [f"model.vision.model={towers['clip']}", f"model.image_size={SIZE}"])
    check_names(config)
    part = build_vision(config)
    assert (config.model.projection.name, part.rows, part.width) == ("mlp", ROWS, 32)


def spoilt(folder: Path, copy: Path, **settings) -> Path:
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    own = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(own | settings))
    return copy


def problems(parity_config: ModelConfig, folder: Path, **settings) -> list[str]:
    model = replace(
        parity_config, vision=VisionConfig("huggingface", str(folder), **settings), ckpt=None, image_size=SIZE
    )
    with pytest.raises(UserError) as error:
        MiniGPT4.from_config(Config(model=replace(model, plain_text="/no/text")))
    lines = str(error.value).splitlines()
    assert lines.pop().startswith("model.plain_text:")  # all are reported at once
    return lines


def test_what_is_not_such_a_tower_is_reported_with_the_other_problems(parity_config, towers, tmp_path):
    (line,) = problems(parity_config, Path("/no/tower"))
    assert line.startswith("model.vision.model: '/no/tower' is not a folder with a config.json")
    (line,) = problems(parity_config, Path(parity_config.llama_model))
    assert line.startswith("model.vision.model: no vision transformer in") and "patch_size" in line
    (line,) = problems(parity_config, towers["clip"], join=3)
    assert line == "model.vision.join: 16 patches can't be joined by 3. Set it to a divisor, or 1."
    (line,) = problems(parity_config, towers["clip"], layer=-4)
    assert line == "model.vision.layer: -4 of a tower of 3 layers. Set it to -1 or null."
    (line,) = problems(replace(parity_config), spoilt(towers["clip_alone"], tmp_path, hidden_size=64))
    assert line.startswith(f"model.vision.model: '{tmp_path}': ") and "config.json asks for" in line
    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    (line,) = problems(parity_config, tmp_path)
    assert line.startswith(f"model.vision.model: '{tmp_path}/model.safetensors' is a web page")


def test_another_size_than_the_image_processors_is_refused(towers):
    config = config_of(towers["dinov2"])
    with pytest.raises(UserError, match=r"^model.image_size: 70, but model.vision.model=.* sees pictures of 56. Set"):
        build_vision(replace(config, model=replace(config.model, image_size=70)))


def test_a_folder_without_an_image_processor_is_warned_of(towers, tmp_path, caplog):
    copy = spoilt(towers["clip"], tmp_path)
    (copy / "preprocessor_config.json").unlink()
    assert build_vision(config_of(copy)).rows == ROWS
    assert "has no preprocessor_config.json: pictures are normalised as CLIP's" in caplog.text


def test_missing_weights_are_refused(towers, tmp_path):
    copy = spoilt(towers["dinov2"], tmp_path)
    weights = load_file(copy / "model.safetensors")
    weights.pop("layernorm.bias")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^model.vision.model: '.*' lacks 1 of the weights .*layernorm.bias"):
        part_of(config_of(copy))


def test_a_checkpoint_of_another_kind_of_projection_is_refused_before_the_llm_is_read(
    towers, parity_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", None)
    save_file({"llama_proj.weight": torch.zeros(64, 32)}, tmp_path / "linear.safetensors")
    vision = VisionConfig("huggingface", str(towers["clip"]))
    config = replace(parity_config, vision=vision, ckpt=str(tmp_path / "linear.safetensors"))
    with pytest.raises(UserError, match="llama_proj.weight.* another kind of projection. Set model.proj"):
        MiniGPT4.from_config(Config(model=replace(config, projection=ProjectionConfig("mlp"))))
    save_file({"llama_proj.weight": torch.zeros(64, 768)}, tmp_path / "linear.safetensors")
    with pytest.raises(UserError, match=r"width 768 \(Q-Former\); this model's have 32. Change model.vision"):
        MiniGPT4.from_config(Config(model=config))
