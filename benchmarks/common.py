"""What the benchmarks share: their options, the machine in words, and ways of doing the same thing timed in turn."""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Hashable, Iterable
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Way, Figure = TypeVar("Way", bound=Hashable), TypeVar("Figure")


def parse(parser: argparse.ArgumentParser, **full: Any) -> argparse.Namespace:
    """The options of a benchmark; its defaults end within 3 minutes on 2 cores, those of --full are given here."""
    sizes = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in full.items())
    parser.add_argument("--full", action="store_true", help=f"as long as for the figures in docs/: {sizes}")
    if parser.parse_known_args()[0].full:
        parser.set_defaults(**full)
    return parser.parse_args()


def machine() -> str:
    """The machine that the figures were taken on."""
    device = "no GPU"
    if torch.accelerator.is_available():
        device = str(torch.accelerator.current_accelerator())
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = next(iter(names), cpu)
    return f"{os.cpu_count()} cores of {cpu}, {device}, Python {sys.version.split()[0]}, torch {torch.__version__}"


def in_turn(rounds: int, ways: dict[Way, Callable[[], Figure]]) -> dict[Way, list[Figure]]:
    """Runs each way once a round, A B A B, so that a machine that gets slower does so for all; returns the figures."""
    figures: dict[Way, list[Figure]] = {name: [] for name in ways}
    steps = tqdm(list(product(range(rounds), ways)))
    for _, name in steps:
        steps.set_description(str(name))
        figures[name].append(ways[name]())
    return figures


def row(name: str, figures: Iterable[float], unit: str) -> str:
    """A line with the median, and the least and the most."""
    figures = list(figures)
    return f"  {name:44} {statistics.median(figures):9.2f} {unit}  ({min(figures):.2f} - {max(figures):.2f})"


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]
