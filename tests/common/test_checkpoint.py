"""Checkpoints: only trainable weights, strict loading, damaged and foreign files refused in one line."""

import functools
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minigpt4.common.checkpoint import load_checkpoint, load_tensors, local_files, save_checkpoint
from minigpt4.common.errors import UserError


def model() -> nn.Module:
    parts = nn.ModuleDict({"frozen": nn.Linear(2, 2), "llama_proj": nn.Linear(2, 3)})
    parts["frozen"].requires_grad_(False)
    return parts


def test_only_trainable_weights_are_written_and_come_back(tmp_path):
    source, target = model(), model()
    save_checkpoint(source, tmp_path / "checkpoint_0")
    assert load_file(tmp_path / "checkpoint_0" / "model.safetensors").keys() == {"llama_proj.weight", "llama_proj.bias"}
    before = target["frozen"].weight.clone()
    report = load_checkpoint(target, tmp_path / "checkpoint_0")
    assert report.loaded == ["llama_proj.bias", "llama_proj.weight"]
    assert torch.equal(target["llama_proj"].weight, source["llama_proj"].weight)
    assert torch.equal(target["frozen"].weight, before)
    assert [p.name for p in (tmp_path / "checkpoint_0").iterdir()] == ["model.safetensors"]


def test_the_originals_pth_with_its_buffers_loads(tmp_path):
    source = model()
    weights = {k: v for k, v in source.state_dict().items() if k.startswith("llama_proj")}
    buffer = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save({"model": weights | buffer, "epoch": 3}, tmp_path / "checkpoint_3.pth")
    report = load_checkpoint(model(), tmp_path / "checkpoint_3.pth")
    assert report.ignored == list(buffer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("llama_proj.bias"), "missing \\['llama_proj.bias'\\]"),
        (lambda w: w.update({"llama_porj.weight": torch.ones(1)}), "unknown \\['llama_porj.weight'\\]"),
        (lambda w: w.update({"llama_proj.weight": torch.ones(5, 2)}), "\\[5, 2\\], this model has \\[3, 2\\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message, tmp_path):
    target = model()
    weights = {k: v + 1 for k, v in target.state_dict().items() if k.startswith("llama_proj")}
    change(weights)
    save_file(weights, tmp_path / "x.safetensors")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_checkpoint(target, tmp_path / "x.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


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


def test_all_paths_are_checked_before_anything_is_downloaded(tmp_path):
    url = "http://127.0.0.1:9/weights.pth"  # nobody listens there
    with pytest.raises(UserError, match="model.ckpt: '/no/where' does not exist"):
        local_files({"model.vit_model": url, "model.ckpt": "/no/where"}, str(tmp_path))
    with pytest.raises(UserError, match="model.vit_model: .* can't be downloaded .* set model.vit_model to it"):
        local_files({"model.vit_model": url}, str(tmp_path))
    assert local_files({"model.ckpt": str(tmp_path)}, "unused") == {"model.ckpt": tmp_path}


def test_a_url_is_downloaded_once_into_the_cache(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "w.safetensors").write_bytes(b"weights")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/w.safetensors"
        first = local_files({"k": url}, str(tmp_path / "cache"))["k"]
        server.shutdown()
    assert first.read_bytes() == b"weights" and first.is_relative_to(tmp_path / "cache")
    assert local_files({"k": url}, str(tmp_path / "cache"))["k"] == first  # the server is gone
