"""How fast and how large training steps are: python benchmarks/train.py [--full] [--models tiny mid]

On any device, with random weights, 224 pixels and 32000 words: tiny (layers as in the bundled model), mid (ViT-B,
Q-Former, a Llama of 58 million parameters), and on a GPU 7b and 13b (EVA-ViT-g, Q-Former, a Llama of that size, bf16).
Measured are whole runs of the runner that train.py uses, from JPEGs in shards to checkpoints, and on mid two pairs of
ways to do the same, in turn.
"""

import argparse
import contextlib
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import in_turn, machine, parse, ratios, row
from data import write_shards
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.common.distributed import pick_device
from minigpt4.common.paths import TINY_LLM
from minigpt4.common.registry import registry
from minigpt4.config.schema import (
    BuildInfo,
    Config,
    DatasetConfig,
    ModelConfig,
    ProcessorConfig,
    ProcessorsConfig,
    QformerConfig,
    RunConfig,
    VitConfig,
)
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import Prompter
from minigpt4.datasets.loading import Batch, LayOut, collate, to_device
from minigpt4.models import minigpt4 as minigpt4_module
from minigpt4.models.llm import load_tokenizer, pick_dtype, window_of
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.projection import build_projection
from minigpt4.models.vision import VisionPart, build_vision
from minigpt4.models.vision.cached_features import CachedFeatures
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from minigpt4.tools.doctor.peak_memory import PeakMemory

TINY = str(TINY_LLM)
ORIGINAL = 35.0  # image-text pairs a second and GPU: 5 million in 10 hours on 4 A100s (MiniGPT-4, section 3.1)
MATRIX = 4096  # rows of the product that says what a device can do

LLMS = {  # hidden size, width of the MLP, layers, heads
    "tiny": (128, 344, 4, 4),
    "mid": (512, 1376, 8, 8),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}
TOWERS = {
    "tiny": (VitConfig(embed_dim=64, depth=4, num_heads=4, mlp_ratio=4), QformerConfig(128, 2, 4, 512)),
    "mid": (VitConfig(embed_dim=768, depth=12, num_heads=12, mlp_ratio=4), QformerConfig()),
}


def build(size: str, device: torch.device) -> tuple[MiniGPT4, Prompter]:
    """A model of that size with random weights, frozen but for its projection, as in stage 1, and its prompter."""
    vit, qformer = TOWERS.get(size, (VitConfig(), QformerConfig()))
    dtype = pick_dtype("auto", device)
    precision: Any = "fp32" if dtype == torch.float32 else "bf16"
    config = ModelConfig(vit=vit, qformer=qformer, vit_precision=precision, prompt_path="", max_txt_len=32)
    hidden, mlp, layers, heads = LLMS[size]
    sizes = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
    )
    with torch.device(device):
        llm = LlamaForCausalLM._from_config(sizes, dtype=dtype).requires_grad_(False).eval()
        vision = build_vision(Config(model=config)).to_empty(device=device)
        projection = build_projection("linear", vision.width, llm)
    model = MiniGPT4(vision, projection, llm)
    for parameter in vision.parameters():
        torch.nn.init.normal_(parameter.requires_grad_(False), std=0.02)
    return model, Prompter.of(config, load_tokenizer(TINY), vision.rows, window_of(sizes))


def flops(model: MiniGPT4, positions: int, labels: int) -> float:
    """Of a training step and sample: forward through all, and back through the LLM to its input, not its weights."""
    vit, llm = model.vision.vit, model.llm
    towers = 2 * sum(p.numel() for p in vit.parameters()) * (vit.patch_embed.num_patches + 1)
    queries = 2 * sum(p.numel() for p in model.vision.qformer.parameters()) * model.vision.rows
    head = llm.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in llm.parameters()) - head - llm.get_input_embeddings().weight.numel()
    return towers + queries + 4 * (body * positions + head * labels)


def most_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What the device does in a second: of a large product of matrices, the best of five."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    times = [timed(lambda: a @ b, device) for _ in range(5)]
    return 2 * MATRIX**3 / min(times)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds."""
    started = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def samples(prompter: Prompter, batch: int, device: torch.device) -> Batch:
    """A batch of 96 positions a sample, of which 32 are labels."""
    word = "a "
    prompt = [torch.randn(3, 224, 224), " "]
    while len(prompter.layout(prompt)) < 64:
        prompt[1] += word
    conversation = Conversation([Turn(prompt, word * 64)], kind="instruction")
    sample = {"conversation": conversation, "image_id": ""}
    laid_out = LayOut(replace(prompter, image_tags=("", "")), training=True)(sample)
    return to_device(collate([laid_out] * batch), device)


@contextlib.contextmanager
def full_logits() -> Iterator[None]:
    """All positions go through the LLM's head, as in the original."""
    picked = minigpt4_module.head_reads
    minigpt4_module.head_reads = lambda *_: contextlib.nullcontext()  # type: ignore[assignment]
    try:
        yield
    finally:
        minigpt4_module.head_reads = picked


def step(model: MiniGPT4, batch: dict[str, Any], device: torch.device) -> float:
    """Seconds of a forward and backward."""

    def run() -> None:
        model.projection.zero_grad()
        model(batch)["loss"].backward()

    return timed(run, device)


def compare_heads(model: MiniGPT4, prompter: Prompter, batch: int, rounds: int, device: torch.device) -> None:
    data = samples(prompter, batch, device)

    def full(run: Callable[[], float]) -> float:
        with full_logits():
            return run()

    def memory() -> float:
        with PeakMemory() as peak:
            step(model, data, device)
        return peak.most / 2**20

    print("label positions alone, against all positions, through a head of 32000 words (96 positions, 32 labels)")
    for what, measure, unit in (("time", lambda: step(model, data, device), "s"), ("peak memory", memory, "MiB")):
        measure(), full(measure)
        both = in_turn(rounds, {"labels": measure, "all": lambda m=measure: full(m)})
        print(row(f"{what} of a step, labels", both["labels"], unit))
        print(row(f"{what} of a step, all", both["all"], unit))
        print(row("ratio", ratios(both["labels"], both["all"]), "x"))


def compare_cache(model: MiniGPT4, prompter: Prompter, batch: int, rounds: int, device: torch.device) -> None:
    live = samples(prompter, batch, device)
    with torch.no_grad():
        cached = live | {"pictures": model.vision(live["pictures"]).to(torch.bfloat16)}
    blind = CachedFeatures(Config(), (model.vision.rows, model.vision.width))
    kinds = {"cached": (blind, cached), "live": (model.vision, live)}

    def rate(vision: VisionPart, data: dict[str, Any]) -> float:
        model.vision = vision
        return batch / step(model, data, device)

    both = in_turn(rounds + 1, {name: partial(rate, *own) for name, own in kinds.items()})
    print("features from the cache, against live towers")
    print(row("cached", both["cached"][1:], "samples/s"))
    print(row("live", both["live"][1:], "samples/s"))
    print(row("ratio", ratios(both["cached"][1:], both["live"][1:]), "x"))


def run_training(
    size: str, model: MiniGPT4, prompter: Prompter, batch: int, steps: int, workers: int, device: torch.device
) -> None:
    """A run of the runner, whose own log has the figures."""
    images, text = ProcessorConfig("blip2_image_train", image_size=224), ProcessorConfig("blip_caption")
    both = ProcessorsConfig(images, images), ProcessorsConfig(text, text)
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        shards.mkdir()
        write_shards(shards, 256, 512, max(workers, 1) * 2)
        block = DatasetConfig(build_info=BuildInfo(str(shards)), vis_processor=both[0], text_processor=both[1])
        run = RunConfig(batch_size_train=batch, num_workers=workers, iters_per_epoch=steps, log_freq=steps // 2)
        run.output_dir, run.device, run.amp = f"{name}/out", str(device), device.type != "cpu"
        config = Config(model=ModelConfig(plain_text=None), datasets={"cc_sbu": block}, run=run)  # it speaks none
        dataset = registry.get_builder_class("cc_sbu")("cc_sbu", block).build("train")
        RunnerBase(config, ImageTextPretrainTask(config), model, {"train": {"cc_sbu": dataset}}, prompter).train()
        lines = (Path(name) / "out" / "log.txt").read_text().splitlines()
    log = [record for record in map(json.loads, lines) if "samples_per_s" in record][-1]  # the first has the warm-up
    rate, labels = log["samples_per_s"], log["tokens_per_s"] / log["samples_per_s"]
    dtype = next(model.llm.parameters()).dtype
    work = rate * flops(model, int(labels) + model.vision.rows + 1, int(labels))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # in KiB on Linux
    memory = f"{log['memory_gb']:.1f} GB of the device" if "memory_gb" in log else f"{most:.1f} GB of the process"
    print(f"{size}: a run of {steps} steps, batch {batch}, {workers} workers")
    print(f"  {rate:.1f} pairs/s ({rate / ORIGINAL:.2f} x the original's {ORIGINAL:.0f} on an A100)")
    print(f"  {log['data_wait']:.1%} of the time waiting for data; peak memory: {memory}")
    print(f"  {work / most_flops(device, dtype):.0%} of the FLOP/s of a product of {MATRIX} x {MATRIX} matrices")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures training steps.")
    parser.add_argument("--models", nargs="+", choices=LLMS, default=["tiny", "mid"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    args = parse(parser, rounds=5, steps=20, batch=8)
    device = pick_device(args.device)
    print(machine())
    for size in args.models:
        model, prompter = build(size, device)
        run_training(size, model.train(), prompter, args.batch, args.steps, args.workers, device)
        if size == "mid":
            compare_heads(model, prompter, args.batch, args.rounds, device)
            compare_cache(model, prompter, args.batch, args.rounds, device)
        del model


if __name__ == "__main__":
    main()
