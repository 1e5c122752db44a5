"""What trains, and what it takes."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import OPTConfig, OPTForCausalLM

from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config
from minigpt4.datasets.loading import Batch
from minigpt4.models.checkpoint import save_weights
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.parts import checkpoint_blocks
from minigpt4.models.preflight import preflight
from minigpt4.models.projection import build_projection
from minigpt4.models.vision import build_vision
from minigpt4.runners.log import parts_table
from tests.batches import batch_of, captioned

PARTS = {
    "llm": ("llm.",),
    "qformer": ("vision.qformer.", "vision.queries"),
    "vit": ("vision.vit.", "vision.norm."),
}
CONVERSATIONS = captioned(torch.randn(2, 3, 56, 56), ["a dog", "the small grass"])


@pytest.fixture
def batch(parity_prompter) -> Batch:
    return batch_of(parity_prompter, CONVERSATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_what_is_unfrozen_trains_in_fp32_and_is_saved(part, batch, parity_config, tmp_path, caplog):
    config = replace(parity_config, unfreeze=[part], vit_precision="bf16", llm_dtype="bf16")
    model = MiniGPT4.from_config(Config(model=config)).train()
    trained = {n: p for n, p in model.named_parameters() if n.startswith(("projection.", *PARTS[part]))}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained.keys()
    assert all(p.dtype == torch.float32 for p in trained.values())
    frozen = {"llm": model.llm, "qformer": model.vision.qformer, "vit": model.vision.vit}
    assert {name for name, module in frozen.items() if module.training} == {part}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch)["loss"]
    loss.backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without <= {"llm.model.embed_tokens.weight"}  # a prompt without words does not reach them
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.requires_grad] == []
    assert "they begin as built, from" in caplog.text  # the checkpoint has the projection alone

    save_weights(trained, tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) == len(trained)
    again = MiniGPT4.from_config(Config(model=replace(config, ckpt=str(tmp_path))))
    assert all(torch.equal(again.get_parameter(n), p) for n, p in trained.items())
    with pytest.raises(UserError, match=r"unknown .*, this model does not train it. model\.\w+ says whether"):
        MiniGPT4.from_config(Config(model=replace(config, ckpt=str(tmp_path), unfreeze=[])))


def test_the_report_counts_what_is_unfrozen(parity_config):
    model = MiniGPT4.from_config(Config(model=replace(parity_config, unfreeze=["qformer"])))
    rows = {line.split("|")[1].strip(): line.split("|")[2:4] for line in parts_table(model).splitlines()[2:]}
    assert rows["vision.qformer"][0] == rows["vision.qformer"][1]
    assert rows["vision.queries"][0] == rows["vision.queries"][1] and rows["vision.vit"][1].strip() == "0"
    assert rows["llm"][1].strip() == "0"


TINY = "train_configs/minigpt4_tiny_stage2_finetune.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.unfreeze=[qfromer]"], r"model.unfreeze\S*: 'qfromer' is unknown. Did you mean 'qformer'"),
        (["model.unfreeze=[llm]", "model.quantization=4bit"], "model.unfreeze: llm, but .* in 4bit can't be trained"),
        (["model.unfreeze=[llm]", "model.low_resource=True"], "model.unfreeze: llm, but .* in 8bit can't be trained"),
        (["model.unfreeze=[llm]", "model.lora_r=8"], "model.unfreeze: llm trains all its weights, model.lora_r=8"),
        (["model.unfreeze=[qformer]", "model.has_qformer=False"], "model.unfreeze: qformer, but model.has_qformer is"),
        (
            ["model.unfreeze=[qformer]", "model.vision.name=eva_patches"],
            "model.vision.name is eva_patches",
        ),
        (
            ["model.unfreeze=[vit]", "model.vision.name=huggingface"],
            "unfreeze: vit, but .* stays frozen",
        ),
        (["model.freeze_vit=False", "model.vision.name=huggingface"], "model.freeze_vit: False, but .* stays frozen"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(TINY, options)
    assert "\n" not in str(error.value)


def test_unknown_layers_for_adapters_are_refused_before_weights_are_read(parity_config, monkeypatch):
    monkeypatch.setattr("minigpt4.models.minigpt4.load_llm", None)
    config = replace(parity_config, lora_r=2, lora_targets=["q_proj", "vproj"])
    with pytest.raises(UserError, match="model.lora_targets: 'vproj' is not a linear layer .* Did you mean 'v_proj'"):
        MiniGPT4.from_config(Config(model=config))


@pytest.mark.slow
def test_adapters_may_be_added_to_a_checkpoint_without_any(batch, parity_config, parity_model):
    config = replace(parity_config, lora_r=2, lora_targets=["o_proj", "mlp.down_proj"], lora_alpha=6)
    model = MiniGPT4.from_config(Config(model=config)).eval()
    targets = {n.split(".lora_")[0].rpartition(".")[2] for n, p in model.named_parameters() if ".lora_" in n}
    assert targets == {"o_proj", "down_proj"}
    assert model.llm.peft_config["default"].lora_alpha == 6
    torch.testing.assert_close(model(batch)["loss"], parity_model(batch)["loss"])


def saved_and_gradients(model: MiniGPT4, batch: Batch) -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes kept for backward outside of blocks, the loss, and the gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)["loss"]
    loss.backward()
    return sum(kept.values()), loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"unfreeze": ["vit"]}, {"lora_r": 2}], ids=["frozen", "vit", "lora"])
def test_recomputed_activations_change_nothing_but_memory(change, batch, parity_config):
    config = replace(parity_config, **change)
    models = []
    for on in (False, True):
        torch.manual_seed(0)  # adapters begin at random
        models.append(MiniGPT4.from_config(Config(model=replace(config, use_grad_checkpoint=on))).train())
    plain, recomputed = models
    recomputed = copy.deepcopy(recomputed)  # which must compute with its own weights
    results = []
    for model in (plain, recomputed):
        torch.manual_seed(0)  # adapters drop out
        results.append(saved_and_gradients(model, batch))
    (bytes_plain, loss_plain, plain_gradients), (bytes_recomputed, loss_recomputed, recomputed_gradients) = results
    assert torch.equal(loss_plain, loss_recomputed) and plain_gradients.keys() == recomputed_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(recomputed_gradients[name], gradient, atol=1e-7, rtol=1e-5)
    assert bytes_recomputed < bytes_plain / 2
    assert plain.llm.training is recomputed.llm.training is ("lora_r" in change)


@pytest.mark.slow
def test_no_dropout_in_a_frozen_llm_that_recomputes_activations(batch, parity_config):
    """OPT's blocks drop out where they are in training mode, which transformers' own switch would need."""
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 64, "num_attention_heads": 4}
    llm = OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=2, vocab_size=480, dropout=0.9, attention_dropout=0.9))
    config = Config(model=parity_config)
    checkpoint_blocks(llm.requires_grad_(False))
    vision = build_vision(config)
    vision.load(config, preflight(config))
    model = MiniGPT4(vision, build_projection("linear", vision.width, llm), llm)
    losses = [model.train()(batch)["loss"] for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    assert model.projection.weight.grad.isfinite().all()


def test_frozen_towers_keep_nothing_for_backward(batch, parity_model):
    features = []
    hook = parity_model.projection.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    parity_model.train()(batch)
    hook.remove()
    parity_model.eval()
    assert not features[0].requires_grad
