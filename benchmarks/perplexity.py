"""The perplexity of a LLaMA of 10M weights in bf16, in 8 and in 4 bits on a CPU: what quantization costs in quality.

    python -m benchmarks.perplexity            # a short training: about 3 minutes on 2 cores
    python -m benchmarks.perplexity --full

The LLM is trained here, byte by byte, on the sources of Python's standard library; a tenth of them is held out.
"""

import argparse
import random
import sysconfig
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.common import machine, parse
from minigpt4.models.quantized_linear import QuantizedLinear
from minigpt4.models.quantized_llm import load_quantized

LENGTH, BATCH, HELD_OUT = 256, 8, 64
SIZES = LlamaConfig(
    vocab_size=256, hidden_size=320, intermediate_size=896, num_hidden_layers=8, num_attention_heads=5, dtype="float16"
)


def read_sources() -> tuple[Tensor, Tensor]:
    """Bytes to train on, and those of other files."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(files)
    texts = [file.read_bytes() for file in files]
    held_out, own = texts[::10], [text for i, text in enumerate(texts) if i % 10]
    return tuple(torch.tensor(list(b"".join(part)), dtype=torch.uint8) for part in (own, held_out))


def pieces(text: Tensor, count: int) -> Tensor:
    starts = torch.randint(len(text) - LENGTH, (count,))
    return torch.stack([text[start : start + LENGTH] for start in starts]).long()


def loss_of(llm: PreTrainedModel, ids: Tensor) -> Tensor:
    logits = llm(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train(text: Tensor, steps: int) -> PreTrainedModel:
    llm = AutoModelForCausalLM.from_config(SIZES, dtype=torch.float32)
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    for _ in (progress := trange(steps)):
        loss = loss_of(llm, pieces(text, BATCH))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    return llm


@torch.inference_mode()
def perplexity(llm: PreTrainedModel, ids: Tensor) -> float:
    return torch.stack([loss_of(llm, part) for part in ids.split(BATCH)]).mean().exp().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help=f"of {BATCH} x {LENGTH} bytes (default: %(default)s)")
    options = parse(parser, steps=2000)
    torch.manual_seed(0)
    text, other = read_sources()
    llm = train(text, options.steps)
    print(f"{machine()}; {sum(p.numel() for p in llm.parameters()) / 1e6:.1f}M weights, {options.steps} steps")
    ids = pieces(other, HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        llm.half().save_pretrained(folder)
        exact = perplexity(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), ids)
        print(f"bf16    {exact:.4f}")
        for bits in (8, 4):
            quantized = load_quantized(Path(folder), bits, torch.bfloat16, False)
            layers = sum(isinstance(module, QuantizedLinear) for module in quantized.modules())
            own = perplexity(quantized, ids)
            print(f"{bits} bits  {own:.4f}, {100 * (own / exact - 1):+.2f} % of bf16's; {layers} layers")


if __name__ == "__main__":
    main()
