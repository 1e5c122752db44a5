"""What made a result: all that must be equal for two scores to say something about each other."""

from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from minigpt4.common.run_info import run_info
from minigpt4.config.schema import Config
from minigpt4.evaluation.benchmark import Benchmark
from minigpt4.inference.engine import Engine

_ANNOTATIONS = {".json", ".jsonl", ".tsv", ".txt", ".parquet"}
_BLOCK = 2**22
SAME_QUESTIONS = ("benchmark", "annotations", "decoding")  # of two results that are compared
SAME_ANSWERS = (*SAME_QUESTIONS, "condition", "checkpoints", "dtype", "model", "preprocess")  # to go on with a run
_MAY_CHANGE = {"benchmark.scorer", "benchmark.limit", "benchmark.name", "benchmark.questions"}


def manifest_of(config: Config, benchmark: Benchmark, condition: str, engine: Engine) -> dict[str, Any]:
    """All of it that is known before the first question is asked."""
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
        "annotations": _annotations(Path(block.eval_file_path)),
        "template": config.model.conversation,
        "decoding": {"method": "greedy", "max_new_tokens": block.max_new_tokens},
        "dtype": {name: str(next(part.parameters()).dtype).removeprefix("torch.") for name, part in parts.items()},
        "batch_size": block.batch_size,
        "model": {key: value for key, value in plain["model"].items() if key not in ("ckpt", "compile")},
        "preprocess": plain["preprocess"],
        "config": plain,
        **run_info(model.device),
    }


def differences(one: dict[str, Any], other: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """What differs below some keys, as "key: value -> value"."""
    first, second = (_flat({key: own.get(key) for key in keys}) for own in (one, other))
    return [
        f"{key}: {first.get(key)} -> {second.get(key)}"
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


def _annotations(path: Path) -> dict[str, str]:
    """{file: SHA-256} of the annotation file, or of those in a folder and below it."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in _ANNOTATIONS and f.is_file())
    return {file.name if file == path else str(file.relative_to(path)): _sha256(file) for file in files}


def _checksum(path: Path) -> str | None:
    """Of a file, or of the weights in a checkpoint's folder; None of what lies elsewhere, as at an address."""
    file = path / "model.safetensors" if path.is_dir() else path
    return _sha256(file) if file.is_file() else None


def _sha256(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
