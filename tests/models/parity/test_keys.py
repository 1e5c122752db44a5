"""Names and shapes of the small models' weights: all, trainable, saved."""

import re

import pytest
from safetensors.torch import load_file

from minigpt4.models.checkpoint import file_name, save_weights
from tests.conftest import PARITY, golden_json
from tests.models.parity import FLAVOURS

SPEC = golden_json("model_keys")


def is_buffer(key: str) -> bool:
    return key.endswith((".inv_freq", ".position_ids"))


ALL_KEYS = [(flavour, SPEC[flavour]["all_keys"]) for flavour in FLAVOURS]
ALL_KEYS += [("vicuna0", golden_json("7_v1")["all_state_dict_keys"])]


@pytest.mark.parametrize(("flavour", "recorded"), ALL_KEYS, ids=[*FLAVOURS, "first version"])
def test_all_keys(flavour, recorded, parity_engines):
    """peft wraps lm_head in the original, and the adapted layers today."""
    state = parity_engines[flavour].model.state_dict()
    ours = {re.sub(r"\.(base_layer|default)\.", ".", file_name(k)): list(v.shape) for k, v in state.items()}
    recorded = {k.replace("lm_head.0.", "lm_head."): v for k, v in recorded.items()}
    assert ours == {k: v for k, v in recorded.items() if not is_buffer(k)}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_trainable_and_saved_keys(flavour, parity_engines, tmp_path):
    """Quirk 20, both values: the original saves buffers too; its files are read, ours hold what is trained."""
    model, recorded = parity_engines[flavour].model, SPEC[flavour]
    trainable = [file_name(n) for n, p in model.named_parameters() if p.requires_grad]
    assert set(trainable) == set(recorded["trainable"])
    save_weights({n: p for n, p in model.named_parameters() if p.requires_grad}, tmp_path)
    saved = {k: list(v.shape) for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert saved == {k: shape for k, shape in recorded["saved_keys"].items() if not is_buffer(k)}
    assert set(recorded["saved_keys"]) == set(load_file(PARITY / "weights" / f"ckpt_{flavour}.safetensors"))
    assert any(map(is_buffer, recorded["saved_keys"]))
