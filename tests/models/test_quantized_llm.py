"""An LLM in 4 or 8 bits on a CPU: what is kept is near what was read, and it answers and trains as before."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config
from minigpt4.models import tensor_files
from minigpt4.models.llm import load_llm, quantizes_itself
from minigpt4.models.preflight import llm_outline, memory_of_devices
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.quantized_llm import load_quantized
from minigpt4.models.vision import build_vision
from minigpt4.tiny.lm_data import Writer, collate, sample_examples
from minigpt4.tiny.tokenizer import load_tokenizer

TINY = Path(__file__).parents[2] / "minigpt4" / "assets" / "tiny" / "llm"
CPU = torch.device("cpu")


@pytest.mark.parametrize(("bits", "error"), [(4, 0.08), (8, 0.007)])
def test_a_layer(bits, error):
    torch.manual_seed(0)
    linear = nn.Linear(128, 192)
    own, whole = QuantizedLinear(linear, bits), QuantizedLinear(linear, bits)
    weight = linear.weight.detach()
    for rows in (slice(0, 10), slice(10, 192)):
        own.quantize(rows.start, weight[rows])
    whole.quantize(0, weight)
    assert own.codes.equal(whole.codes) and own.scales.equal(whole.scales)
    assert (own.weight - weight).norm() < error * weight.norm()
    assert own.codes.nbytes + own.scales.nbytes == QuantizedLinear.bytes_of(linear, bits)
    input = torch.randn(2, 3, 128, requires_grad=True)
    expected = F.linear(input, own.weight.float(), linear.bias)
    torch.testing.assert_close(own(input), expected)
    own(input).sum().backward()
    assert input.grad is not None and input.grad.any()
    own.pack()
    own.pack()  # once more changes nothing
    torch.testing.assert_close(own(input.detach()), expected.detach(), atol=0.02, rtol=0.02)  # no gradient is asked for
    with torch.no_grad():
        torch.testing.assert_close(own(input), expected, atol=0.02, rtol=0.02)
        assert own(input.bfloat16()).dtype == torch.bfloat16


def test_zeros_stay_zeros():
    linear = nn.Linear(64, 64, bias=False)
    for bits in (4, 8):
        own = QuantizedLinear(linear, bits)
        own.quantize(0, torch.zeros(64, 64))
        assert not own.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_the_tiny_llm_is_as_sure_of_its_words(bits):
    """Its perplexity changes by less than 3 %."""
    writer, rng = Writer(load_tokenizer(TINY)), random.Random(0)
    exact = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    own = load_quantized(TINY, bits, torch.float32, False)
    assert sum(isinstance(module, QuantizedLinear) for module in own.modules()) > 10
    table = exact.model.embed_tokens.weight.detach()
    embeddings, labels = collate(sample_examples(writer, rng, 64, 2, False), table, torch.full((64,), 0.5))

    @torch.no_grad()
    def perplexity(llm: nn.Module) -> float:
        logits = llm(inputs_embeds=embeddings, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).exp().item()

    before = perplexity(exact)
    assert perplexity(own) == pytest.approx(before, rel=0.03)
    for module in own.modules():
        if isinstance(module, QuantizedLinear):
            module.pack()
    assert perplexity(own) == pytest.approx(before, rel=0.03)


def llama(folder: Path, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    own = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes, **options))
    own.save_pretrained(folder)
    return own.eval()


@torch.no_grad()
def differs(llm: nn.Module, other: nn.Module) -> float:
    ids = torch.arange(20)[None]
    one, two = llm(ids).logits, other(ids).logits
    return ((one - two).norm() / one.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_any_llm_of_linear_layers(options, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)
    exact = llama(tmp_path, **options)
    own = load_quantized(tmp_path, 8, torch.float32, False)
    assert differs(exact, own) < 0.03 and not any(p.requires_grad or p.is_meta for p in own.parameters())
    tied = options.get("tie_word_embeddings", False)
    assert isinstance(own.lm_head, QuantizedLinear) is not tied
    assert not tied or own.lm_head.weight is own.model.embed_tokens.weight
    assert own.generation_config.eos_token_id == exact.generation_config.eos_token_id


def test_masks_and_scalars_in_the_files_do_no_harm(tmp_path):
    exact = llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    extra = {"model.mask": torch.ones(4, dtype=torch.bool), "model.count": torch.tensor(3)}
    save_file(weights | extra, tmp_path / "model.safetensors")
    assert differs(exact, load_quantized(tmp_path, 8, torch.float32, False)) < 0.03


def test_what_transformers_must_read_is_left_to_it(tmp_path):
    llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"other.{name}": weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    assert load_quantized(tmp_path, 8, torch.float32, False) is None


def test_a_weight_of_another_shape_is_refused(tmp_path):
    llama(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"][:10].clone()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight is \[10\], its config.json asks for \[64\]"):
        load_quantized(tmp_path, 8, torch.float32, False)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_its_memory_is_known_before(quantization, parity_config):
    config = replace(parity_config, quantization=quantization, lora_r=0)
    outline = llm_outline(Path(config.llama_model))
    llm = load_llm(config, CPU)
    tensors = [
        *llm.parameters(),
        *(own for m in llm.modules() if isinstance(m, QuantizedLinear) for own in m.buffers()),
    ]
    vision = build_vision(Config(model=config))
    (size,) = [own for name, own in memory_of_devices(config, vision, outline, CPU)[CPU].items() if "LLM" in name]
    assert size == sum(tensor.nbytes for tensor in tensors)


def test_where_it_is_used(parity_config):
    plain, bits = replace(parity_config, lora_r=0), {"quantization": "4bit"}
    assert quantizes_itself(replace(plain, **bits), CPU) and quantizes_itself(replace(plain, low_resource=True), CPU)
    assert not quantizes_itself(plain, CPU) and not quantizes_itself(replace(plain, **bits), torch.device("cuda"))
    assert not quantizes_itself(replace(plain, **bits, lora_r=4), CPU)
    assert not quantizes_itself(replace(plain, **bits, device_map="auto"), CPU)
    assert getattr(load_llm(replace(plain, **bits), CPU), "is_quantized", False)
