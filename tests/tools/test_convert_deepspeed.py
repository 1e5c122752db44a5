"""Raw checkpoints of DeepSpeed; those of ZeRO are made and converted in tests/runners/test_strategies.py."""

from pathlib import Path

import pytest
import torch

from minigpt4.common.errors import UserError
from minigpt4.tools.convert_deepspeed import read_deepspeed

PROJECTION = {"llm_proj.weight": torch.ones(2, 3), "llm_proj.bias": torch.zeros(2)}


def test_a_pipelines_layer_files(tmp_path):
    """MiniGPT4Qwen's pipeline names its stage first, and its folder is named by `latest`."""
    (tmp_path / "global_step7").mkdir()
    (tmp_path / "latest").write_text("global_step7\n")
    torch.save(
        {f"visionpipe.{k}": v for k, v in PROJECTION.items()}, tmp_path / "global_step7/layer_00-model_states.pt"
    )
    torch.save({"llm.inv_freq": torch.ones(3)}, tmp_path / "global_step7" / "layer_01-model_states.pt")
    weights = read_deepspeed(tmp_path)
    assert weights.keys() == PROJECTION.keys() and torch.equal(weights["llm_proj.weight"], torch.ones(2, 3))


def test_a_single_file_of_model_states(tmp_path):
    torch.save({"module": PROJECTION, "global_steps": 7}, tmp_path / "mp_rank_00_model_states.pt")
    assert read_deepspeed(tmp_path).keys() == PROJECTION.keys()


@pytest.mark.parametrize("spoil", [lambda folder: None, lambda folder: (folder / "mp_rank_00_model_states.pt").touch()])
def test_what_is_not_a_checkpoint_is_reported(spoil, tmp_path: Path):
    spoil(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint of DeepSpeed|can't be read as a checkpoint of DeepSpeed"):
        read_deepspeed(tmp_path)
