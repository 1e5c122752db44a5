"""Checkpoints: only trainable weights, strict loading, damaged and foreign files refused in one line."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minigpt4.common.checksums import write_checksums
from minigpt4.common.errors import UserError
from minigpt4.models.checkpoint import check_shape, file_name, load_checkpoints, local_file, save_weights
from minigpt4.models.published import cached_file
from minigpt4.models.weight_file import load_tensors


def model() -> nn.Module:
    parts = nn.ModuleDict({"frozen": nn.Linear(2, 2), "projection": nn.Linear(2, 3)})
    parts["frozen"].requires_grad_(False)
    return parts


def test_only_trainable_weights_are_written_and_come_back(tmp_path):
    source, target = model(), model()
    save_weights({n: p for n, p in source.named_parameters() if p.requires_grad}, tmp_path / "checkpoint_0")
    assert load_file(tmp_path / "checkpoint_0" / "model.safetensors").keys() == {"llama_proj.weight", "llama_proj.bias"}
    before = target["frozen"].weight.clone()
    report = load_checkpoints(target, [tmp_path / "checkpoint_0"])
    assert report.loaded == {str(tmp_path / "checkpoint_0"): ["llama_proj.bias", "llama_proj.weight"]}
    assert torch.equal(target["projection"].weight, source["projection"].weight)
    assert torch.equal(target["frozen"].weight, before)
    assert [p.name for p in (tmp_path / "checkpoint_0").iterdir()] == ["model.safetensors"]


def test_the_originals_pth_with_its_buffers_loads(tmp_path):
    source = model()
    weights = {file_name(k): v for k, v in source.state_dict().items() if k.startswith("projection")}
    buffer = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save({"model": weights | buffer, "epoch": 3}, tmp_path / "checkpoint_3.pth")
    report = load_checkpoints(model(), [tmp_path / "checkpoint_3.pth"])
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
    weights = {file_name(k): v + 1 for k, v in target.state_dict().items() if k.startswith("projection")}
    change(weights)
    save_file(weights, tmp_path / "x.safetensors")
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_checkpoints(target, [tmp_path / "x.safetensors"])
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize(
    ("name", "found", "own", "words"),
    [
        ("llama_proj.weight", [4096, 768], [5120, 768], r"LLM of width 4096 \(7B\); this LLM has 5120 \(13B\)"),
        ("llama_proj.bias", [64], [48], "LLM of width 64; this LLM has 48"),
        ("llama_proj.weight", [64, 5632], [64, 768], r"width 5632 \(no Q-Former\); this model's have 768 \(Q-Former\)"),
        ("llama_model.q_proj.lora_B.default.weight", [4096, 64], [4096, 16], "rank 64: set model.lora_r=64"),
        ("query_tokens", [1, 32, 768], [1, 8, 768], "use the checkpoint of a model with these settings"),
    ],
)
def test_a_wrong_shape_is_explained_in_words(name, found, own, words):
    with pytest.raises(UserError, match=words) as error:
        check_shape("x.pth", name, found, own)
    assert "\n" not in str(error.value)
    check_shape("x.pth", name, found, found)


def test_a_list_of_files_is_loaded_in_order_and_covers_all_together(tmp_path):
    target = model()
    target["vision"] = nn.ModuleDict({"qformer": nn.Linear(2, 2)})
    files = [tmp_path / name for name in ("stage1.pth", "qformer.safetensors", "stage2.safetensors")]
    save_weights(nn.ModuleDict({"projection": nn.Linear(2, 3)}).state_dict(), tmp_path)
    torch.save({key: value + 1 for key, value in load_file(tmp_path / "model.safetensors").items()}, files[0])  # flat
    save_file({"Qformer.weight": torch.ones(2, 2), "Qformer.bias": torch.ones(2)}, files[1])
    save_file({"llama_proj.bias": torch.full((3,), 7.0)}, files[2])
    report = load_checkpoints(target, files, {"frozen": "frozen.pth"})
    assert target["projection"].bias.tolist() == [7, 7, 7] and target["vision"]["qformer"].bias.tolist() == [1, 1]
    assert torch.equal(target["projection"].weight, torch.load(files[0])["llama_proj.weight"])
    assert [names[0] for names in report.loaded.values()] == ["llama_proj.bias", "Qformer.bias", "llama_proj.bias"]
    assert report.as_built == {"frozen": "frozen.pth"}
    with pytest.raises(UserError, match=r"missing \['llama_proj.weight'\], .* trains.$"):
        load_checkpoints(target, files[1:])
    with pytest.raises(UserError, match=r"missing \['Qformer.bias', .* model.freeze_qformer says whether it trains"):
        load_checkpoints(target, files[:1])


NAMES = {  # ours, and the original's
    "vision.vit.blocks.0.attn.qkv.weight": "visual_encoder.blocks.0.attn.qkv.weight",
    "vision.norm.bias": "ln_vision.bias",
    "vision.queries": "query_tokens",
    "vision.qformer.layernorm.weight": "Qformer.bert.embeddings.LayerNorm.weight",
    "vision.qformer.encoder.layer.0.attention.attention.key.bias": (
        "Qformer.bert.encoder.layer.0.attention.self.key.bias"
    ),
    "vision.qformer.encoder.layer.0.crossattention.attention.key.bias": (
        "Qformer.bert.encoder.layer.0.crossattention.self.key.bias"
    ),
    "vision.qformer.encoder.layer.0.attention.output.dense.bias": (
        "Qformer.bert.encoder.layer.0.attention.output.dense.bias"
    ),
    "projection.weight": "llama_proj.weight",
    "projection.2.weight": "llama_proj.2.weight",
    "llm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": (
        "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    ),
    "vision.tower.embeddings.class_embedding": "vision.tower.embeddings.class_embedding",  # the original has none
}


def test_files_have_the_originals_names():
    assert {name: file_name(name) for name in NAMES} == NAMES
    assert {file_name(name) for name in NAMES.values()} == set(NAMES.values())


def test_names_of_the_first_files_with_a_trained_qformer_are_understood():
    """They named the Q-Former's weights as transformers does."""
    for own, original in NAMES.items():
        if own.startswith("vision.qformer."):
            assert file_name(own.replace("vision.qformer.", "Qformer.")) == original


def test_other_spellings_of_the_same_weights_load(tmp_path):
    """MiniGPT4Qwen's names, and those that the original's peft gives to adapters and the LLM's head."""
    target = nn.Module()
    target.projection = nn.Linear(1, 1, bias=False)
    target.llm = nn.ModuleDict({"lm_head": nn.Linear(1, 1, bias=False), "q": nn.Module()})
    target.llm["q"].lora_A = nn.ModuleDict({"default": nn.Linear(1, 1, bias=False)})
    for projection, adapter in (("llm_proj", "lora_A"), ("llama_proj", "lora_A.default")):
        names = [f"{projection}.weight", f"llama_model.q.{adapter}.weight", "llama_model.lm_head.0.weight"]
        values = torch.rand(3)
        torch.save({name: value.view(1, 1) for name, value in zip(names, values, strict=True)}, tmp_path / "x.pth")
        load_checkpoints(target, [tmp_path / "x.pth"])
        own = target.projection, target.llm["q"].lora_A["default"], target.llm["lm_head"]
        assert [layer.weight.item() for layer in own] == values.tolist()


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module", "state_dict.module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_wrapped_and_prefixed_weights_load(wrapper, prefix, tmp_path):
    own = {file_name(name): value for name, value in model().state_dict().items() if name.startswith("projection")}
    state: dict = {prefix + name: value + 1 for name, value in own.items()}
    for key in reversed(wrapper.split(".") if wrapper else []):
        state = {key: state, "epoch": 3}
    torch.save(state, tmp_path / "x.pth")
    loaded = load_tensors(tmp_path / "x.pth")
    assert loaded.keys() == own.keys()
    load_checkpoints(model(), [tmp_path / "x.pth"])
    if wrapper is None:
        save_file(state, tmp_path / "x.safetensors")
        assert load_tensors(tmp_path / "x.safetensors").keys() == own.keys()


@pytest.mark.parametrize("name", ["", "model.safetensors"])  # the folder, or its file
def test_damaged_weights_of_a_checkpoint_are_not_loaded(name, tmp_path):
    save_weights({"llama_proj.weight": torch.ones(2, 3)}, tmp_path)
    write_checksums(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="model.safetensors' can't be read as it was written: it is damaged"):
        load_tensors(tmp_path / name)
    save_weights({"llama_proj.weight": torch.ones(2, 3)}, tmp_path)  # others, of which no checksum tells
    assert load_tensors(tmp_path / name)["llama_proj.weight"].sum() == 6


def test_a_checkpoint_that_changes_nothing_is_an_error(tmp_path):
    torch.save({"model": {"llama_model.layers.0.rotary_emb.inv_freq": torch.ones(4)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth holds no trained weights: loading it would change nothing"):
        load_checkpoints(model(), [tmp_path / "x.pth"])


def test_the_report_says_what_is_from_where(tmp_path):
    weights = {file_name(k): v for k, v in model().state_dict().items() if k.startswith("projection")}
    torch.save(weights | {"x.inv_freq": torch.ones(4)}, tmp_path / "x.pth")
    assert str(load_checkpoints(model(), [tmp_path / "x.pth"], {"frozen": "vit.pth"})).splitlines() == [
        f"checkpoint {tmp_path / 'x.pth'}: llama_proj (2 tensors)",
        "ignored: 1 buffers, such as x.inv_freq",
        "frozen: from vit.pth, not from a checkpoint",
    ]
    without = load_checkpoints(model(), [], {"frozen": "vit.pth"})
    assert str(without).splitlines() == [
        "frozen: from vit.pth, not from a checkpoint",
        "llama_proj: from its initial values, not from a checkpoint",
    ]


def test_a_url_is_a_file_that_was_downloaded_before(tmp_path):
    url = "http://127.0.0.1:9/models/w.safetensors"  # nobody listens there
    message = f"model.ckpt: {url} is not on this machine. To download it: minigpt4 fetch {url} --download --cache "
    with pytest.raises(UserError, match=re.escape(message)):
        local_file("model.ckpt", url, str(tmp_path))
    file = cached_file(url, str(tmp_path))
    file.parent.mkdir()
    file.touch()
    assert local_file("model.ckpt", url, str(tmp_path)) == file
    assert local_file("model.ckpt", str(tmp_path), "unused") == tmp_path
