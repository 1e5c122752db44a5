"""Evaluation: asks the benchmarks of a config, scores the answers and leaves a folder for each result."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from tqdm import tqdm

from minigpt4.common.distributed import all_gather, barrier, is_main, rank, world_size
from minigpt4.common.errors import Problems, UserError, make_folder, writing
from minigpt4.common.files import replace_file
from minigpt4.config.finding import CONFIG
from minigpt4.config.loading import save_config
from minigpt4.config.schema import Config
from minigpt4.evaluation.asking import Condition, StoredQuestion, adjacent, answers_to, asked, shuffled
from minigpt4.evaluation.benchmark import Benchmark, Scores, load_benchmark
from minigpt4.evaluation.manifest import SAME_MODEL, differences, manifest_of, other_answers
from minigpt4.evaluation.results import (
    MANIFEST,
    PREDICTIONS,
    SCORES,
    read_manifest,
    write_json,
    write_result,
)
from minigpt4.evaluation.tables import table
from minigpt4.inference.engine import Engine
from minigpt4.inference.results import Results
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.projection import build_projection

logger = logging.getLogger(__name__)

SUMMARY = "evaluation.json"
Table = dict[str, dict[str, Scores]]  # {benchmark: {condition: scores}}


@dataclass
class Evaluation:
    """The benchmarks of a config, loaded and checked.

    Attributes:
        conditions: "trained", and controls that repeat it with sight taken away.
        overwrite: answer again where a folder holds answers of another model or of other questions.
    """

    config: Config
    benchmarks: Sequence[Benchmark]
    conditions: Sequence[Condition] = ("trained",)
    overwrite: bool = False
    weights: str | None = None  # what they are, where they are not those that the config names

    @classmethod
    def of(cls, config: Config, names: Sequence[str] | None = None, overwrite: bool = False) -> "Evaluation":
        """Loads what `evaluation_datasets` names, or some of it, and `run.controls`.

        Raises:
            UserError: none is named, or an annotation or a picture is missing; all problems are reported at once.
        """
        if not config.evaluation_datasets:
            raise UserError("evaluation_datasets: none is named. Name one with eval_file_path and img_path.")
        problems, loaded = Problems(), []
        for name, block in config.evaluation_datasets.items():
            with problems.collect():
                if names is None or name in names:
                    loaded.append(load_benchmark(name, block))
                    if block.scorer in loaded[-1].score_only:
                        raise UserError(
                            f"evaluation_datasets.{name}.scorer: '{block.scorer}' scores probabilities, and a model "
                            "answers in words. Set it to official."
                        )
                    loaded[-1].check_pictures()
        conditions: tuple[Condition, ...] = ("trained", *config.run.controls)
        with problems.collect():
            _check_folders([_folder_name(name, own) for name in config.evaluation_datasets for own in conditions])
        problems.raise_all()
        return cls(config, loaded, conditions, overwrite)

    def run(self, engine: Engine, folder: Path | None = None) -> Table:
        """Asks and scores everything. All ranks must call it; they share the questions.

        Answers are written as they come, and a run that was ended continues where it was.

        Args:
            folder: where results go; None: where the config says.

        Raises:
            UserError: a folder holds the answers of another evaluation, or can't be written.
        """
        config = self.config
        key, folder = (config.run.results[0], folder or config.run.results[1])
        if is_main():
            make_folder(key, folder)
            with writing(key, folder):
                save_config(config, folder / CONFIG)
        results: Table = {}
        for benchmark in self.benchmarks:
            results[benchmark.name] = {
                condition: self._evaluate(engine, benchmark, condition, key, folder) for condition in self.conditions
            }
            logger.info(
                "%s, %d questions\n%s", benchmark.name, len(benchmark.questions), table(results[benchmark.name])
            )
        if is_main():
            with writing(key, folder):
                write_json(folder / SUMMARY, self._summary(folder))
        return results

    def _summary(self, folder: Path) -> dict[str, dict[str, Any]]:
        """{benchmark: {condition: scores}} of all finished results of this model, of earlier runs too."""
        summary: dict[str, dict[str, Any]] = {}
        now = read_manifest(folder / _folder_name(self.benchmarks[0].name, self.conditions[0])) or {}
        for name, condition in product(self.config.evaluation_datasets, get_args(Condition)):
            own = folder / _folder_name(name, condition)
            if not differences(read_manifest(own) or {}, now, SAME_MODEL):
                with suppress(OSError, ValueError, LookupError):  # not finished, or damaged
                    summary.setdefault(name, {})[condition] = json.loads((own / SCORES).read_bytes())["scores"]
        return summary

    def _evaluate(self, engine: Engine, benchmark: Benchmark, condition: Condition, key: str, folder: Path) -> Scores:
        own = folder / _folder_name(benchmark.name, condition)
        manifest = manifest_of(self.config, benchmark, condition, engine) if is_main() else {}
        if self.weights:
            manifest["checkpoints"] = {self.weights: None}
        questions = asked(benchmark, self.config.preprocess.n_frms)
        problems = Problems()
        if is_main():
            with problems.collect(), writing(key, own):
                make_folder(key, own)
                self._prepare(own, manifest, {question.id for question in questions})
        Problems(all_gather(list(problems))).raise_all()
        with self._seeing(engine.model, condition):
            lines = self._answers(engine, benchmark, questions, condition, key, own)
        scores = benchmark.score({line["id"]: line.get("choice", line["answer"]) for line in lines.values()})
        if is_main():
            with writing(key, own):
                write_result(own, benchmark, lines, scores, manifest)
        failed = sum("error" in line for line in lines.values())
        if failed or scores.unparsed:
            logger.warning(
                "%s, %s: %d questions failed and %d answers could not be understood: they count as wrong, see %s",
                *(benchmark.name, condition, failed, scores.unparsed, own / PREDICTIONS),
            )
        return scores

    def _prepare(self, folder: Path, manifest: Mapping[str, Any], ids: set[str]) -> None:
        """Leaves answers in the folder that this run would give too, in one file."""
        files = [folder / PREDICTIONS, *sorted(folder.glob(f"*.{PREDICTIONS}"))]
        before = None if self.overwrite else read_manifest(folder)
        if before is not None and (differing := other_answers(before, dict(manifest))):
            raise UserError(
                f"'{folder}' holds the answers of another evaluation ({'; '.join(differing[:3])}). Answer again "
                "with --overwrite, or set run.output_dir to another folder."
            )
        parts = [file.read_bytes() for file in files if file.is_file() and not self.overwrite]
        if before is None and any(parts):
            raise UserError(
                f"'{folder}' holds a {PREDICTIONS} but no {MANIFEST} that says what made it. Answer again with "
                "--overwrite, or set run.output_dir to another folder."
            )
        # a line that was not written to its end is asked again
        whole = b"".join(part[: part.rfind(b"\n") + 1] for part in parts)
        if more := len(_ids(whole) - ids):
            raise UserError(
                f"'{folder}' holds answers to {more} questions that are not asked now. Set a larger limit, set "
                "run.output_dir to another folder, or answer again with --overwrite."
            )
        replace_file(folder / PREDICTIONS, whole)
        for file in (folder / SCORES, *files[1:]):
            file.unlink(missing_ok=True)
        write_json(folder / MANIFEST, manifest)

    def _answers(
        self,
        engine: Engine,
        benchmark: Benchmark,
        questions: list[StoredQuestion],
        condition: Condition,
        key: str,
        own: Path,
    ) -> dict[str, dict[str, Any]]:
        """{question: its line}, of all ranks and of the runs before."""
        block = self.config.evaluation_datasets[benchmark.name]
        problems = Problems()
        with ExitStack() as stack:
            results: Results[StoredQuestion] | None = None
            if is_main():
                with problems.collect():
                    results = stack.enter_context(Results(own / PREDICTIONS, questions, key))
            Problems(all_gather(list(problems))).raise_all()
            left = set(all_gather([question.id for question in results.open] if results else []))
            still = [question for question in questions if question.id in left]
            first, end = (len(still) * number // world_size() for number in (rank(), rank() + 1))
            mine = adjacent(still)[first:end]  # a picture is read on one rank, or two
            if results is None:
                results = stack.enter_context(Results(own / f"{rank()}.{PREDICTIONS}", mine, key))
            stack.enter_context(_saying_where(own))
            with tqdm(total=len(mine), desc=f"{benchmark.name}, {condition}", disable=not is_main() or not mine) as bar:
                for lines in answers_to(
                    engine,
                    benchmark,
                    mine,
                    max_new_tokens=block.max_new_tokens,
                    batch_size=block.batch_size,
                    # on a CPU they would only take turns with the model
                    num_workers=self.config.run.num_workers if engine.model.device.type != "cpu" else 0,
                    condition=condition,
                    other=shuffled(questions) if condition == "shuffled_images" else None,
                ):
                    results.write(lines)
                    bar.update(len(lines))
            found = {line["id"]: line for line in all_gather(results.written)}
        barrier()
        if is_main():
            for file in own.glob(f"*.{PREDICTIONS}"):
                file.unlink()
        return {question.id: found[question.id] for question in questions}

    @contextmanager
    def _seeing(self, model: MiniGPT4, condition: Condition) -> Iterator[None]:
        """The model as a condition has it: with its own projection, or one that was never trained."""
        projection: nn.Module = model.projection
        if condition == "untrained_projection":
            torch.manual_seed(0)  # the same at each evaluation, and on each rank
            projection = build_projection(self.config.model.projection.name, model.vision.width, model.llm)
        with model.projecting_with(projection.to(model.device)):
            yield


def _folder_name(benchmark: str, condition: str) -> str:
    """Where the result of a benchmark lies, below the folder of all."""
    return benchmark if condition == "trained" else f"{benchmark}_{condition}"


def _check_folders(names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f"evaluation_datasets: '{name}' is also the name of another one's control. Give it another name."
            )


@contextmanager
def _saying_where(folder: Path) -> Iterator[None]:
    """Says at Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; the answers so far are in %s: continue with the same command, without --overwrite", folder
        )
        raise


def _ids(lines: bytes) -> set[Any]:
    """The questions that lines answer; what is not a line of ours is for `Results` to refuse."""
    found = set()
    for line in lines.splitlines():
        with suppress(ValueError, LookupError, TypeError):
            found.add(json.loads(line)["id"])
    return found
