"""A loss or gradient that is not a number, on one rank alone, leaves no trace with any strategy."""

import json
from pathlib import Path

import pytest

from minigpt4.common.distributed import rank
from tests.runners.run_strategies import STRATEGIES
from tests.runners.toy import Poisoned, on_ranks, toy_runner

pytestmark = pytest.mark.distributed

# where, which batches of rank 1, batches accumulated, the step of the optimizer that is to be skipped
CASES = [("gradient", 3, 1, 2), ("loss", 3, 1, 2), ("loss", 3, 2, 1), ("loss", 4, 2, 1), ("infinite loss", 4, 2, 1)]


def train_all(folder: Path) -> None:
    """Writes for each strategy and case whether each step was made, and the sum of all weights after it."""
    runs: dict[str, list] = {}
    for strategy in STRATEGIES:
        for case in CASES:
            where, bad, accumulated, _ = case
            name = f"{strategy} {case}"
            options = {
                "strategy": strategy.rstrip("0123"),
                "zero_stage": int(strategy[-1]) if strategy[-1].isdigit() else 0,
            }
            model = Poisoned({bad} if rank() else set(), where)
            runner = toy_runner(folder / name, model=model, max_epoch=1, accum_grad_iters=accumulated, **options)
            step, runs[name] = runner.strategy.step, []

            def watched(lr: float, step=step, runner=runner, steps=runs[name]) -> bool:
                good = step(lr)
                steps.append((good, sum(w.double().sum().item() for w in runner.strategy.weights().values())))
                return good

            runner.strategy.step = watched
            runner.train()
            assert runner.guard.bad_steps == 0
    if rank() == 0:
        (folder / "runs.json").write_text(json.dumps(runs))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list]:
    folder = tmp_path_factory.mktemp("bad")
    on_ranks(2, train_all, folder)
    return json.loads((folder / "runs.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bad_step_alone_is_skipped(strategy, case, runs):
    steps, skipped = runs[f"{strategy} {case}"], case[-1]
    assert [good for good, _ in steps] == [i != skipped for i in range(len(steps))]
    weights = [weight for _, weight in steps]
    assert [a != b for a, b in zip(weights, weights[1:], strict=False)] == [i != skipped for i in range(1, len(steps))]
    assert weights == pytest.approx([weight for _, weight in runs[f"ddp {case}"]], abs=1e-5)
