"""A result is a folder: predictions.jsonl, scores.json and manifest.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError
from minigpt4.common.files import replace_file
from minigpt4.evaluation.benchmark import Benchmark, Scores
from minigpt4.evaluation.statistics import estimate

PREDICTIONS, SCORES, MANIFEST = "predictions.jsonl", "scores.json", "manifest.json"


@dataclass(frozen=True)
class Result:
    """What an evaluation has left.

    Attributes:
        predictions: one dict a question: id, prompt, images, answer, reference, score, understood, tags, seconds.
        scores: see `Scores.json`, with details at the top alone; `mean` has its interval, and `units` the values it is
            made of if not the questions'.
        manifest: what made it, see `manifest.manifest_of`.
    """

    folder: Path
    predictions: list[dict[str, Any]]
    scores: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def values(self) -> dict[str, float]:
        """What the mean and its interval are made of: {question, or group of them: value}."""
        units = self.scores["units"]
        return units if units is not None else {p["id"]: p["score"] for p in self.predictions if p["score"] is not None}

    @property
    def title(self) -> str:
        """The benchmark and what was evaluated, in a few words."""
        manifest = self.manifest
        condition = "" if manifest["condition"] == "trained" else f", {manifest['condition'].replace('_', ' ')}"
        return f"{manifest['benchmark']['name']}{condition} ({self.folder})"


def read_result(folder: str | Path) -> Result:
    """Reads a result.

    Raises:
        UserError: the folder holds none, an unfinished one, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        inside = sorted(str(file.parent) for file in folder.glob(f"*/{MANIFEST}"))
        cure = f"Name one of {', '.join(inside)}." if inside else "minigpt4 evaluate writes one for each benchmark."
        raise UserError(f"'{folder}' is not a result: it has no {MANIFEST}. {cure}")
    if not (folder / SCORES).is_file():
        raise UserError(f"'{folder}': its evaluation has not ended. Run it again: it continues there.")
    try:
        scores, manifest = (json.loads((folder / name).read_bytes()) for name in (SCORES, MANIFEST))
        predictions = [json.loads(line) for line in (folder / PREDICTIONS).read_bytes().splitlines()]
        result = Result(folder, predictions, scores, manifest)
        assert isinstance(result.title, str) and isinstance(result.values, dict) and isinstance(scores["scores"], dict)
        numbers = scores["mean"]["mean"], scores["mean"]["standard_error"], *scores["mean"]["interval_95"]
        assert len(numbers) == 4 and all(isinstance(n, int | float) for n in (*numbers, scores["main"]["value"]))
        assert scores["main"]["scale"] in ("percent", "fraction", "points") and scores["main"]["name"]
        return result
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"'{folder}' can't be read: it is damaged ({error!r}). Evaluate again with --overwrite."
        ) from None


def write_result(
    folder: Path,
    benchmark: Benchmark,
    lines: Mapping[str, dict[str, Any]],
    scores: Scores,
    manifest: dict[str, Any],
) -> None:
    """Writes what an evaluation has found: predictions with their scores, all scores, and the manifest's end.

    Args:
        lines: {question: its line of the answers}; see `asking.answers_to`.

    Raises:
        OSError: a file can't be written.
    """
    predictions = []
    for question in benchmark.questions:
        judged = scores.samples.get(question.id)  # None: it does not count
        own = {"value": None, "parsed": True, "understood": None} if judged is None else asdict(judged)
        predictions.append(
            lines[question.id]
            | {"reference": question.reference, "score": own["value"], "parsed": own["parsed"]}
            | {"understood": own["understood"], "tags": dict(question.tags)}
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    replace_file(folder / PREDICTIONS, text.encode(errors="backslashreplace"))
    counts = {
        "questions": len(predictions),
        "scored": len(scores.samples),
        "skipped": len(predictions) - len(scores.samples),
        "unparsed": scores.unparsed,
        "failed": sum("error" in line for line in predictions),
        "seconds": round(sum(line["seconds"] for line in predictions), 3),  # of all processes, and of runs before
    }
    write_json(folder / MANIFEST, manifest | counts)
    estimated = estimate(list(scores.values.values())).json()
    own_keys = {"scores": scores.scores, "mean": estimated, "units": scores.units}
    write_json(folder / SCORES, scores.json() | own_keys)  # last: it is complete


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that an evaluation has started, or None."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        return found if isinstance(found, dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    replace_file(file, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
