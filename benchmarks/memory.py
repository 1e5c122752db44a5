"""Estimated beside measured memory of a CPU process that loads, chats and trains, each in a fresh process.

    python -m benchmarks.memory                                             # the tiny model, and an LLM of 370M
    python -m benchmarks.memory --sizes 1b 7b --quantization 4bit --eva     # with ViT-g and Q-Former
    python -m benchmarks.memory --sizes 7b --llm-dtype bf16 --batch 1

The LLMs and ViT-g are of random numbers, in fp16 (the Q-Former in fp32), written to a temporary folder: 13.5 GB for 7B.
Measured is the most memory that was resident (VmHWM), of which mapped files are a part. Linux only: it is in /proc.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.chat import machine
from minigpt4.common.paths import ASSETS
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config, ModelConfig, QformerConfig, VitConfig
from minigpt4.models.checkpoint import file_name
from minigpt4.models.tensor_files import Outline, write_tensors
from minigpt4.models.vision.eva import build_vit
from minigpt4.models.vision.eva_qformer import build_qformer

LLMS = {"400m": (1024, 2816, 24, 16), "1b": (2048, 5632, 22, 32), "7b": (4096, 11008, 32, 32)}
PHASES = "load", "chat", "train"
TINY = ASSETS / "tiny"
QUESTION, ANSWER = "how many digits are there? " * 8, 20


def noise(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Random numbers, the same few again and again: drawing 7 billion takes minutes."""
    some = torch.randn(2**20).mul_(0.02).to(dtype)
    return some.repeat(-(-shape.numel() // len(some)))[: shape.numel()].clone().view(shape)


def write_llm(folder: Path, size: str) -> None:
    """A LLaMA in fp16 whose answers are the tiny tokenizer's first word, over and over."""
    width, mlp, layers, heads = LLMS[size]
    sizes = LlamaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        dtype="float16",
    )
    folder.mkdir()
    sizes.save_pretrained(folder)
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(sizes).state_dict()
    outlines = {name: Outline(tuple(weight.shape), torch.float16) for name, weight in outline.items()}

    def rows(name: str, piece: slice) -> Tensor:
        shape = torch.Size((piece.stop - piece.start, *outlines[name].shape[1:]))
        if len(shape) == 1:
            return torch.ones(shape).half()
        return torch.zeros(shape).half() if name.startswith("lm_head") else noise(shape, torch.float16)

    write_tensors(folder, outlines, rows, f"random {size}")
    shutil.copy(TINY / "llm" / "tokenizer.model", folder)


def write_eva(folder: Path) -> dict[str, str]:
    """ViT-g and Q-Former; returns the options that name them."""
    sizes = ModelConfig()
    with torch.device("meta"):
        vit, (qformer, _) = build_vit(sizes.vit, 224), build_qformer(QformerConfig(), 32, sizes.vit.embed_dim)
    torch.save({name: noise(w.shape, torch.float16) for name, w in vit.state_dict().items()}, folder / "vit.pth")
    state = {file_name(f"vision.qformer.{name}"): noise(w.shape, w.dtype) for name, w in qformer.state_dict().items()}
    ones = torch.ones(sizes.vit.embed_dim)
    state |= {"query_tokens": torch.zeros(1, 32, 768), "ln_vision.weight": ones, "ln_vision.bias": 0 * ones}
    torch.save(state, folder / "qformer.pth")
    return {"model.vit_model": f"{folder}/vit.pth", "model.q_former_model": f"{folder}/qformer.pth"}


def peak() -> float:
    """The most bytes that were resident in this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def train(config: Config) -> None:
    """One step as a run makes it, of as many tokens as are estimated."""
    from minigpt4.common.registry import registry
    from minigpt4.runners.strategies.building import build_strategy
    from minigpt4.tools.doctor.estimating import training_length

    cpu = torch.device("cpu")
    model = registry.get_model_class(config.model.arch).from_config(config)
    strategy = build_strategy(model, config.run, cpu)
    model.train()
    rows, batch = model.vision.rows, config.run.batch_size_train
    ids = torch.ones(batch, training_length(config.model, rows), dtype=torch.long)
    ids[:, :rows] = -1
    labels = torch.full_like(ids, -100)
    labels[:, -config.model.max_txt_len :] = 5
    pictures = torch.randn(batch, 3, config.model.image_size, config.model.image_size)
    with strategy.autocast():
        loss = model({"ids": ids, "labels": labels, "mask": torch.ones_like(ids), "pictures": pictures})["loss"]
    strategy.backward(loss, last=True)
    strategy.step(1e-4)


def measure(phase: str, config: Config) -> dict[str, Any]:
    """In a process of its own: does it, and what that took."""
    from PIL import Image

    from minigpt4.inference.chat import Chat
    from minigpt4.inference.loading import load_engine

    start, tokens_of = time.perf_counter(), {}
    if phase == "train":
        train(config)
    else:
        chat = Chat(load_engine(config))
        if phase == "chat":
            answer = chat.answer([Image.open(TINY / "examples" / "scene1.jpg"), QUESTION], max_new_tokens=ANSWER)
            tokens_of = {"prompt": answer.prompt_tokens, "answer": answer.new_tokens}
    return {"peak": peak(), "seconds": time.perf_counter() - start} | tokens_of


def estimated(config: Config, prompt: int) -> dict[str, float]:
    """Of each phase, in a process that has loaded nothing; mapped files take no more than the memory that is free."""
    from minigpt4.models.preflight import llm_outline
    from minigpt4.models.vision import build_vision
    from minigpt4.tools.doctor.devices import Device, process_memory
    from minigpt4.tools.doctor.estimating import Setting, estimate

    baseline, vision, folder = process_memory(), build_vision(config), Path(config.model.llama_model)
    cpu = Device("CPU", True, 0, 1, 1)
    lengths = prompt - vision.rows, ANSWER
    setting = Setting(config, vision, llm_outline(folder), folder, cpu, baseline, lengths=lengths)
    free = psutil.virtual_memory().available
    return {phase: min(need.memory, max(need.held, free)) for phase, need in estimate(setting).items()}


def child(words: list[str]) -> None:
    phase, prompt, *options = words
    import minigpt4.inference.chat
    import minigpt4.runners.runner_base  # noqa: F401 (what a run imports)
    from minigpt4.config.names import check_names

    config = load_config("minigpt4_tiny_eval", options)
    check_names(config)
    print(json.dumps(estimated(config, int(prompt)) if phase == "estimate" else measure(phase, config)))


def run_child(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", *words]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    own = {
        "run.batch_size_train": str(options.batch),
        "run.amp": "False",
        "run.device": "cpu",
        "model.plain_text": "null",
    }
    own |= {"model.max_txt_len": "64", "model.ckpt": "null"}
    for size in options.sizes:
        if size == "tiny":
            yield "tiny", own
            continue
        llm = folder / size
        write_llm(llm, size)
        sizes = {
            "model.image_size": "224",
            "model.vit": json.dumps(vars(VitConfig())),
        }
        sizes |= {"model.qformer": json.dumps(vars(QformerConfig())), "model.vit_precision": "fp16"}
        towers = write_eva(folder) | sizes if options.eva else {}
        for quantization in options.quantization:
            named = {"model.llama_model": str(llm), "model.llm_dtype": options.llm_dtype}
            yield f"{size}, {quantization}", own | towers | named | {"model.quantization": quantization}
        shutil.rmtree(llm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", *LLMS), default=["tiny", "400m"])
    parser.add_argument("--quantization", nargs="+", choices=("none", "8bit", "4bit"), default=["none", "4bit"])
    parser.add_argument("--llm-dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--batch", type=int, default=4, help="of the training step")
    parser.add_argument("--eva", action="store_true", help="see with ViT-g and Q-Former, not with the tiny towers")
    parser.add_argument("--folder", help="for the random weights (default: a temporary one)")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, settings in cases(options, Path(folder)):
            words = [f"{key}={value}" for key, value in settings.items()]
            phases = tqdm(options.phases, desc=name, file=sys.stderr)
            measured = {phase: run_child(phase, "0", *words) for phase in phases}
            guess = run_child("estimate", str(measured.get("chat", {}).get("prompt", 200)), *words)
            for phase, found in measured.items():
                ratio = guess[phase] / found["peak"]
                print(
                    f"{name:14} {phase:6} measured {found['peak'] / 1e9:6.2f} GB, "
                    f"estimated {guess[phase] / 1e9:6.2f} GB, "
                    f"ratio {ratio:.2f}, {found['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
