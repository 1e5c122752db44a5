"""How fast questions of a benchmark are answered: python benchmarks/evaluate.py [--full] [--layers 16]

The same questions, about pictures of digits of which each is asked about several times, to the bundled tiny model and
to one with random weights: by an evaluation one question at a time and eight at a time, by `Engine.answer` with the
pictures already read, and, where lmms-eval is installed, by lmms-eval's own loop driving the same model. Pictures are
read again in each round. Prints one JSON object: answers/s in turn, and ratios of each round.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that it measures the checkout it lies in

import torch  # noqa: E402

from benchmarks.chat import random_engine, towers  # noqa: E402
from benchmarks.common import in_turn, machine, parse, ratios  # noqa: E402
from minigpt4.config.loading import load_config  # noqa: E402
from minigpt4.config.schema import EvaluationDatasetConfig  # noqa: E402
from minigpt4.evaluation.asking import adjacent, answers_to, asked, conversation_of  # noqa: E402
from minigpt4.evaluation.benchmark import Benchmark, load_benchmark  # noqa: E402
from minigpt4.inference.engine import Engine  # noqa: E402
from minigpt4.inference.loading import load_engine  # noqa: E402
from minigpt4.inference.requests import Request  # noqa: E402
from minigpt4.tiny.data import write_all  # noqa: E402


def evaluation(engine: Engine, benchmark: Benchmark, size: int, options: argparse.Namespace) -> list[str]:
    """Answers as `minigpt4 evaluate` asks for them, in the order of the questions."""
    lines = answers_to(
        engine,
        benchmark,
        asked(benchmark, 1),
        max_new_tokens=options.new_tokens,
        batch_size=size,
        num_workers=options.workers,
    )
    found = {line["id"]: line["answer"] for batch in lines for line in batch}
    return [found[question.id] for question in benchmark.questions]


def requests(engine: Engine, benchmark: Benchmark, options: argparse.Namespace) -> list[Request]:
    """The same as requests, with pictures that are read."""
    pixels = {shown: engine.processor(shown.images()[0]) for own in asked(benchmark, 1) for shown in own.shown}
    return [
        Request(conversation_of(own.question, [pixels[shown] for shown in own.shown], []), options.new_tokens)
        for own in adjacent(asked(benchmark, 1))
    ]


def measure(engine: Engine, benchmark: Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """Answers/s of each way."""
    ready = requests(engine, benchmark, options)
    size = options.batch

    def by_engine() -> list[str]:
        return [str(a) for i in range(0, len(ready), size) for a in engine.answer(ready[i : i + size])]

    ways: dict[str, Callable[[], list[str]]] = {
        "one by one": lambda: evaluation(engine, benchmark, 1, options),
        f"batches of {size}": lambda: evaluation(engine, benchmark, size, options),
        "engine alone": by_engine,
    }
    if find_spec("lmms_eval"):
        from benchmarks.lmms import by_lmms_eval

        ways["lmms-eval"] = lambda: by_lmms_eval(engine, benchmark, size, options.new_tokens)
    said: dict[str, list[str]] = {}

    def timed(name: str) -> float:
        start = time.perf_counter()
        said[name] = ways[name]()
        if engine.model.device.type != "cpu":
            torch.accelerator.synchronize()
        return len(benchmark.questions) / (time.perf_counter() - start)

    for name in ways:  # warm up
        timed(name)
    figures = in_turn(options.repeats, {name: lambda name=name: timed(name) for name in ways})
    batched = figures[f"batches of {size}"]
    result: dict[str, Any] = {name: [round(value, 2) for value in values] for name, values in figures.items()}
    result["batches_over_one_by_one"] = [round(r, 2) for r in ratios(batched, figures["one by one"])]
    result["batches_over_engine"] = [round(r, 3) for r in ratios(batched, figures["engine alone"])]
    if "lmms-eval" in figures:
        result["batches_over_lmms_eval"] = [round(r, 2) for r in ratios(batched, figures["lmms-eval"])]
    pairs = zip(said["one by one"], said[f"batches of {size}"], strict=True)
    result["answers_as_one_by_one"] = sum(a == b for a, b in pairs) / len(benchmark.questions)
    return result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width", type=int, default=512, help="of the random LLM; a multiple of 128")
    parser.add_argument("--layers", type=int, default=4, help="of the random LLM")
    parser.add_argument("--vit-depth", type=int, default=2, help="of the random model; 39 for the whole ViT-g")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=8, help="most of an answer")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, help="processes that read pictures (default: 0 on a CPU, else 4)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parse(parser, layers=8, vit_depth=39, questions=400, new_tokens=20)

    device = torch.device(options.device)
    if options.workers is None:
        options.workers = 0 if device.type == "cpu" else 4
    config = load_config(str(ROOT / "eval_configs/minigpt4_tiny_eval.yaml"), [f"run.device={options.device}"])
    result: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder), seed=1, scale=0.05)
        questions = Path(folder) / "benchmark"
        block = EvaluationDatasetConfig(
            str(questions / "benchmark.json"), str(questions / "image"), limit=options.questions
        )
        benchmark = load_benchmark("scenes", block)
        result["pictures"] = len({shown for own in asked(benchmark, 1) for shown in own.shown})
        result["tiny"] = measure(load_engine(config), benchmark, options)
        engine = random_engine(options.width, options.layers, towers(options.vit_depth, device), device)
        name = f"LLaMA {options.layers} x {options.width}, ViT-g of {options.vit_depth}, {engine.model.llm.dtype}"
        result[name] = measure(engine, benchmark, options)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
