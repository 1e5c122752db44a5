"""Files of weights: what wraps them or their names, damaged and foreign ones."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.common.errors import UserError
from minigpt4.models.weight_file import load_tensors


def test_a_compiled_or_sharded_part_has_its_prefix_within_the_name(tmp_path):
    names = ("llama_model._orig_mod.a", "llama_model._fsdp_wrapped_module.b", "x._checkpoint_wrapped_module.c")
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    assert load_tensors(tmp_path / "x.safetensors").keys() == {"llama_model.a", "llama_model.b", "x.c"}


def test_a_weight_that_is_there_twice_is_refused(tmp_path):
    save_file({"module.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors can't be read as weights: it holds some twice"):
        load_tensors(tmp_path / "x.safetensors")


def test_wrappers_without_end_are_refused(tmp_path):
    state: dict = {}
    state["model"] = state
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth can't be read as weights: expected names and tensors"):
        load_tensors(tmp_path / "x.pth")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_damaged_files_and_code_in_pickles_are_refused(name, tmp_path, capsys):
    file = tmp_path / name
    for content in (b"", b"garbage" * 9, pickle.dumps(Evil())):
        file.write_bytes(content)
        with pytest.raises(UserError, match="can't be read as weights") as error:
            load_tensors(file)
        assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
