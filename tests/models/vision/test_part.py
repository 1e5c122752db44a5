"""Vision parts of one's own: the example of docs/extend.md does what it says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from minigpt4.common.registry import registry
from minigpt4.config.loading import load_config
from minigpt4.config.names import check_names
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_a_tower_is_one_file_and_one_yaml(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "extend.md").read_text().partition("## A vision tower")[2]
    code, yaml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml"))
    registry.get_vision_class("huggingface")  # all that come along are there
    monkeypatch.setattr(registry, "table", registry.table | {"vision": dict(registry.table["vision"])})
    exec(compile(code, "my_tower.py", "exec"), {"__name__": "my_tower"})

    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    save_file(tower.state_dict(), tmp_path / "vit_tiny.safetensors")
    model = OmegaConf.create(yaml).model
    options = [f"model.vision.name={model.vision.name}", f"model.vision.model={tmp_path}/vit_tiny.safetensors"]
    tiny = ROOT / "eval_configs" / "minigpt4_tiny_eval.yaml"
    config = load_config(tiny, [*options, f"model.image_size={model.image_size}", "model.ckpt=null"])
    check_names(config)
    images = torch.randn(2, 3, 224, 224)
    built = MiniGPT4.from_config(config).eval()
    with torch.no_grad():
        features = built.vision(images)
        own = (images * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1) - 0.5) / 0.5
        torch.testing.assert_close(features, tower.forward_features(own)[:, 1:])
        assert built.encode_img(images).shape == (2, 196, built.projection(features).shape[-1])
    assert not any(p.requires_grad for p in built.vision.parameters())

    blind = MiniGPT4.from_config(replace(config), towers=False)
    assert (blind.vision.rows, blind.vision.width) == (196, 192)
