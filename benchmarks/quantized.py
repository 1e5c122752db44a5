"""An LLM in 4 or 8 bits and a ViT-g on a CPU, of random weights: load, memory, a token, a prompt, a picture.

By default a LLaMA of 2 layers of 7B's; `--layers 32` is 7B itself, whose 13.5 GB of weights are written to a temporary
folder first. `--ways` names how its weights are held and computed with: 4bit/bf16 are 4 bits, computed with in bf16.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.common import machine
from minigpt4.config.schema import ModelConfig
from minigpt4.models.cpu_linear import compute_in_fp32
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.quantized_llm import load_quantized
from minigpt4.models.tensor_files import Outline, write_tensors
from minigpt4.models.vision.eva import build_vit, vit_tokens
from minigpt4.models.vision.part import convert_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = [f"{bits}{dtype}" for bits in ("4bit/", "8bit/", "") for dtype in DTYPES]


def write_llama(folder: Path, layers: int) -> None:
    """A LLaMA as wide as 7B, in fp16, of random numbers."""
    settings = LlamaConfig(num_hidden_layers=layers, dtype="float16")
    settings.save_pretrained(folder)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(settings).state_dict()
    outlines = {name: Outline(tuple(weight.shape), torch.float16) for name, weight in outline.items()}

    def rows(name: str, piece: slice) -> Tensor:
        shape = (piece.stop - piece.start, *outlines[name].shape[1:])
        return torch.ones(shape).half() if len(shape) == 1 else (torch.randn(shape) * 0.02).half()

    write_tensors(folder, outlines, rows, "random weights")


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """How long each of some calls takes."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(round(time.perf_counter() - start, 3))
    return found


@torch.inference_mode()
def of_llm(folder: str, way: str, repeats: int) -> dict[str, Any]:
    """Runs in a process of its own, so that its peak is this LLM's."""
    model = MiniGPT4(nn.Identity(), nn.Linear(1, 1), nn.Identity())
    *quantization, name = way.split("/")
    dtype = DTYPES[name]

    def loaded() -> None:
        if quantization:
            model.llm = load_quantized(Path(folder), int(quantization[0][0]), dtype, False)
        else:
            model.llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    times = {"load": seconds(loaded, 1), "pack": seconds(model.prepare_for_inference, 1)}
    ids = torch.randint(3, 30000, (1, 80))
    cache = model.llm(ids, use_cache=True).past_key_values
    times["prompt of 80"] = seconds(lambda: model.llm(ids, use_cache=True), repeats)
    times["token"] = seconds(lambda: model.llm(ids[:, :1], past_key_values=cache, use_cache=True), 4 * repeats)
    return times | {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)}


@torch.inference_mode()
def of_picture(depth: int, repeats: int) -> dict[str, Any]:
    sizes = ModelConfig()
    sizes.vit.depth = depth
    vit, picture = build_vit(sizes.vit, 224).eval(), torch.randn(1, 3, 224, 224)
    times = {"fp32": seconds(lambda: vit_tokens(vit, picture), repeats)}
    convert_weights(vit, torch.float16)
    times["fp16 products"] = seconds(lambda: vit_tokens(vit, picture), 1)
    compute_in_fp32(vit)
    return times | {"fp16 weights, fp32 products": seconds(lambda: vit_tokens(vit, picture), repeats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="of the LLM; 32 for 7B")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["4bit/fp32", "4bit/bf16"])
    parser.add_argument("--vit-depth", type=int, default=4, help="39 for the whole ViT-g")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        print("Writing the LLM", file=sys.stderr)
        write_llama(Path(folder), options.layers)
        for way in options.ways:
            print(f"Measuring the LLM in {way}", file=sys.stderr)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                result[way] = process.submit(of_llm, folder, way, options.repeats).result()
    print("Measuring the ViT", file=sys.stderr)
    result["picture"] = of_picture(options.vit_depth, options.repeats)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
