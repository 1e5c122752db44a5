"""What made a result: all that must be equal for two scores to say something about each other."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from minigpt4.config.schema import Config
from minigpt4.evaluation.benchmark import Benchmark

if TYPE_CHECKING:  # slow to import
    from torch import nn

    from minigpt4.inference.engine import Engine

_BLOCK = 2**22
_LONG = 80  # characters of a value in a sentence
SAME_QUESTIONS = ("benchmark", "annotations", "decoding")  # of two results that are compared
SAME_MODEL = ("checkpoints", "dtype", "model", "preprocess")
SAME_ANSWERS = (*SAME_QUESTIONS, "condition", *SAME_MODEL)  # to continue with a run
_MAY_CHANGE = {"benchmark.scorer", "benchmark.limit", "benchmark.name"}


def manifest_of(config: Config, benchmark: Benchmark, condition: str, engine: "Engine") -> dict[str, Any]:
    """All of it that is known before the first question is asked."""
    from minigpt4.common.run_info import run_info

    plain = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))
    block = config.evaluation_datasets[benchmark.name]
    model = engine.model
    parts = {"vision": model.vision, "projection": model.projection, "llm": model.llm}
    return {
        "benchmark": {
            "name": benchmark.name,
            "kind": benchmark.kind,
            "method": benchmark.method,
            "prompt": benchmark.prompt,
            "scorer": benchmark.scorer,
            "split": block.split,
            "limit": block.limit,
        },
        "condition": condition,
        "checkpoints": {path: _checksum(Path(path)) for path in config.model.ckpts},
        "annotations": {_below(file, Path(block.eval_file_path)): _sha256(file) for file in benchmark.files},
        "template": config.model.conversation,
        "decoding": {"method": "greedy", "max_new_tokens": block.max_new_tokens},
        "dtype": {name: _dtype(part) for name, part in parts.items()},
        "batch_size": block.batch_size,
        "model": {key: value for key, value in plain["model"].items() if key not in ("ckpt", "compile")},
        "preprocess": plain["preprocess"],
        "config": plain,
        **run_info(model.device),
    }


def differences(one: dict[str, Any], other: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """What differs below some keys, as "key: value -> value", long ones cut."""
    first, second = (_flat({key: own.get(key) for key in keys}) for own in (one, other))
    return [
        f"{key}: {shorten(str(first.get(key)), _LONG)} -> {shorten(str(second.get(key)), _LONG)}"
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]


def other_answers(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why the answers of an earlier run are not what this one would give; nothing if they are."""
    found = differences(before, now, SAME_ANSWERS)
    return [line for line in found if line.partition(": ")[0] not in _MAY_CHANGE]


def _flat(node: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {above: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{above}.{key}".removeprefix(".")).items()}


def _below(file: Path, named: Path) -> str:
    """How the manifest names an annotation file: by where it lies below `eval_file_path`, or beside it."""
    folder = named if named.is_dir() else named.parent
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _dtype(part: "nn.Module") -> str:
    """The dtype of a part's weights; an ONNX tower has its own in its file."""
    weight = next(part.parameters(), None)
    return "none" if weight is None else str(weight.dtype).removeprefix("torch.")


def _checksum(path: Path) -> str | None:
    """The SHA-256 of a file, or of the weights in a checkpoint's folder; None where it is not a local file."""
    file = path / "model.safetensors" if path.is_dir() else path
    return _sha256(file) if file.is_file() else None


def _sha256(file: Path) -> str:
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256_of(file: Path, size: int, changed: int) -> str:
    """Read once, although each condition, and each epoch of a training, asks for it; again where the file changed."""
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
