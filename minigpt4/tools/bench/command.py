"""`minigpt4 bench`: how long answers of one request at a time take, and images, beside published figures."""

import argparse
import logging
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.command_line import positive, say
from minigpt4.common.errors import UserError, make_folder, writing
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.schema import Config

if TYPE_CHECKING:  # slow to import
    from torch import nn

    from minigpt4.conversation.prompter import Prompter
    from minigpt4.inference.engine import Engine

logger = logging.getLogger(__name__)

_TINY, _FULL = "minigpt4_tiny_eval", "minigpt4_eval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_model_arguments(parser, _TINY)
    parser.add_argument(
        "--random-weights",
        choices=["7b", "13b", "tiny"],
        help="measure a LLaMA of this size with the config's towers; no files are read (default config for 7b and 13b: "
        f"{_FULL})",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=lengths,
        metavar="PROMPT/NEW",
        help="tokens of prompt and answer (default: 256/64 512/128 1024/256 3584/512)",
    )
    parser.add_argument("--repeats", type=positive, default=3, help="medians of so many (default: %(default)s)")
    parser.add_argument(
        "--image",
        nargs="*",
        choices=["torch", "compiled", "onnx"],
        default=["torch", "compiled", "onnx"],
        help="ways in which an image is timed; nothing: none (default: all)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for bench.csv, bench.md and bench.png")


def lengths(text: str) -> tuple[int, int]:
    """An argument's type: `256/64`, tokens of the prompt and of the answer."""
    prompt, slash, new = text.partition("/")
    if not slash:
        raise argparse.ArgumentTypeError(f"{text!r} has no '/'. Write tokens of prompt and answer, for example 256/64.")
    return positive(prompt), positive(new)


def main(args: argparse.Namespace) -> None:
    """Measures, prints the table, and writes it.

    Raises:
        UserError: the config or a weight file can't be used, or a length does not fit the LLM.
    """
    if args.random_weights in ("7b", "13b"):
        args.default_config = _FULL
    if args.random_weights and args.model:
        raise UserError("MODEL: --random-weights reads none. Leave one of both out.")
    config = read_config(args)
    if args.out:
        make_folder("--out", args.out)
    from minigpt4.tools.bench.measuring import answer_times, endless, image_times
    from minigpt4.tools.bench.published import LENGTHS
    from minigpt4.tools.bench.tables import draw, markdown, write_csv

    logging.getLogger().setLevel(logging.WARNING)
    wanted = _fitting(_prompter(config, args.random_weights), args.lengths or LENGTHS, asked=bool(args.lengths))
    engine = endless(_engine(config, args.random_weights))
    times = []
    for prompt, new in wanted:
        sys.stderr.write(f"{prompt} / {new} tokens ...\n")
        times.append(answer_times(engine, prompt, new, args.repeats))
    sys.stderr.write(f"an image: {', '.join(args.image)} ...\n" if args.image else "")
    images = image_times(engine, config, args.image, args.repeats)
    about = describe(engine, args.random_weights or args.model or args.cfg_path or _TINY, args.repeats)
    text = markdown(about, times, images)
    say(text)
    if args.out:
        with writing("--out", args.out):
            (args.out / "bench.md").write_text(text, encoding="utf-8")
            write_csv(args.out / "bench.csv", times, images)
            draw(args.out / "bench.png", f"{about['model']}; {about['device']}", times, images)


def _prompter(config: Config, random_weights: str | None) -> "Prompter":
    if random_weights is None:
        from minigpt4.inference.loading import load_prompter

        return load_prompter(config.model)
    from minigpt4.inference.random_engine import random_prompter

    return random_prompter(config)


def _engine(config: Config, random_weights: str | None) -> "Engine":
    if random_weights is None:
        from minigpt4.inference.loading import load_engine

        return load_engine(config)
    from minigpt4.inference.random_engine import llama_sizes, random_engine

    return random_engine(config, llama_sizes(random_weights))


def _fitting(prompter: "Prompter", wanted: list[tuple[int, int]], asked: bool) -> list[tuple[int, int]]:
    """The lengths that the LLM has room for; the others are refused where they were asked for, else left out.

    It is called before weights are read, which may take minutes.
    """
    import torch

    from minigpt4.tools.bench.measuring import exact_prompt

    window = prompter.window
    too_long = [f"{prompt}/{new}" for prompt, new in wanted if prompt + new > window]
    if too_long and asked:
        raise UserError(f"--lengths: {', '.join(too_long)} is more than this LLM's context length of {window} tokens.")
    if too_long:
        sys.stderr.write(f"left out: {', '.join(too_long)}; this LLM's context length is {window} tokens\n")
    fitting = [own for own in wanted if sum(own) <= window]
    for prompt, _ in fitting:
        exact_prompt(prompter, torch.empty(prompter.rows, 1), prompt)
    return fitting


def describe(engine: "Engine", name: str, repeats: int) -> dict[str, str]:
    """What a measurement was taken on."""
    import torch

    from minigpt4.common.run_info import run_info

    model, device = engine.model, engine.model.device
    where = run_info(device)["device"]
    if device.type == "cpu":
        where = f"{os.cpu_count()} cores of {_processor()}, {torch.get_num_threads()} threads"
    parts = {"vision": model.vision, "LLM": model.llm}
    sizes = (f"{part} {_weights(own) / 1e6:.4g} M" for part, own in parts.items())
    dtype = f"LLM {str(model.llm.dtype).removeprefix('torch.')}"
    if getattr(model.llm, "is_quantized", False):
        dtype = "LLM quantized"
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    return {
        "model": f"{name} ({', '.join(sizes)})",
        "device": where,
        "dtype": dtype + (", compiled" if engine.compiled else ""),
        "versions": f"Python {platform.python_version()}, {versions}",
        "measured": f"batch 1, medians of {repeats} after a warm-up; the image was seen before the answer",
    }


def _weights(part: "nn.Module") -> int:
    """How many; those of an ONNX tower are in its file, and not counted."""
    from minigpt4.models.quantized_linear import QuantizedLinear

    quantized = (layer for layer in part.modules() if isinstance(layer, QuantizedLinear))
    return sum(p.numel() for p in part.parameters()) + sum(q.in_features * q.out_features for q in quantized)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
