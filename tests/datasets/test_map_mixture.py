"""Several map-style datasets: one set of workers reads them all, and each keeps its own order, position and skips."""

import json
import multiprocessing
import os
import random
from collections import Counter
from contextlib import closing
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, DatasetConfig, RunConfig
from minigpt4.datasets.mixture import TrainBatches
from tests.waiting import wait_for

RATIOS = {"a": 1.0, "b": 2.0, "c": 3.0}
# what a version with workers for each dataset drew and saved
FIRST = ["c6 c0", "b2 b6", "c1 c3", "a6 a1", "b5 b0", "c2 c4", "c5 c2", "c3 c6", "a0 a4", "b4 b1"]


class Samples(Dataset):
    """Named by their dataset and index; some can't be read."""

    def __init__(self, name: str, size: int = 7, broken: frozenset[int] = frozenset()):
        self.name, self.size, self.broken, self.read = name, size, broken, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read += 1
        if index in self.broken:
            raise UserError(f"{self.name}{index} is broken.")
        crop = (torch.rand(1).item(), random.random())
        return {
            "image_id": f"{self.name}{index}",
            "answer": f"{self.name}{index}",
            "crop": crop,
            "process": os.getpid(),
        }


HALF = frozenset(range(20))  # of 40: of many batches nothing is left


def batches(workers: int = 0, state: dict[str, Any] | None = None, datasets: Any = None, **run: Any) -> TrainBatches:
    datasets = datasets or {name: Samples(name) for name in RATIOS}
    settings = {"batch_size_train": 2, "num_workers": workers, "seed": 5, "max_skip_rate": 1.0} | run
    config = Config({}, {n: DatasetConfig(sample_ratio=RATIOS[n]) for n in datasets}, run=RunConfig(**settings))
    found = TrainBatches(datasets, config)
    if state:
        found.load_state_dict([json.loads(json.dumps(state))])
    return found


def half_broken() -> dict[str, Samples]:
    return {"a": Samples("a"), "b": Samples("b", 40, HALF), "c": Samples("c", 40, frozenset({3}))}


def drawn(found: TrainBatches, number: int) -> list[tuple[list[str], list[Any]]]:
    return [(batch["answer"], batch["crop"]) for batch in (next(found) for _ in range(number))]


@pytest.mark.parametrize("workers", [1, 3])
def test_all_datasets_share_one_set_of_workers(workers):
    before = set(multiprocessing.active_children())
    with closing(batches(workers)) as found:
        taken = [next(found) for _ in range(12)]
        started = {process.pid for process in multiprocessing.active_children() if process not in before}
        assert len(started) == workers
        assert {batch["answer"][0][0] for batch in taken} == set(RATIOS)
        assert {process for batch in taken for process in batch["process"]} == started
    wait_for(lambda: set(multiprocessing.active_children()) <= before)


def test_the_order_and_the_state_are_those_of_workers_for_each_dataset():
    found = batches()
    assert [" ".join(answers) for answers, _ in drawn(found, 10)] == FIRST
    layout = {"processes": 1, "samples in a batch": 2}
    assert found.state_dict() == {
        "step": 10,
        "streams": {
            "a": {"layout": layout, "pass": 0, "base": 0, "drawn": 2},
            "b": {"layout": layout, "pass": 0, "base": 0, "drawn": 3},
            "c": {"layout": layout, "pass": 1, "base": 0, "drawn": 2},
        },
    }


def test_a_dataset_gives_the_same_batches_in_a_mixture_as_alone():
    mixed = drawn(batches(datasets=half_broken()), 60)
    for name in RATIOS:
        own = [batch for batch in mixed if batch[0][0].startswith(name)]
        assert own == drawn(batches(datasets={name: half_broken()[name]}), len(own))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers):
    alone, several = batches(datasets=half_broken()), batches(workers, datasets=half_broken())
    with closing(several):
        assert drawn(several, 60) == drawn(alone, 60)
        assert several.state_dict() == alone.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 8, 33])
def test_it_continues_to_the_bit(cut, workers):
    with closing(batches(workers, datasets=half_broken())) as found:
        whole = drawn(found, 50)
    with closing(batches(workers, datasets=half_broken())) as found:
        assert drawn(found, cut) == whole[:cut]
        state = found.state_dict()
    with closing(batches(workers, state, half_broken())) as found:
        assert drawn(found, 50 - cut) == whole[cut:]


def test_a_batch_of_which_nothing_is_left_is_replaced_from_its_own_dataset_and_none_pile_up():
    datasets = half_broken()
    found, clean = batches(datasets=datasets), batches()
    sources = [answers[0][0] for answers, _ in drawn(found, 200)]
    assert sources == [answers[0][0] for answers, _ in drawn(clean, 200)]
    assert found.streams["b"].skips.seen > 2 * sources.count("b")  # there were such batches
    # without workers nothing is read ahead: what was read was also drawn
    assert {name: dataset.read for name, dataset in datasets.items()} == {
        name: stream.skips.seen for name, stream in found.streams.items()
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_used_is_counted_and_named_for_each_dataset(workers, caplog):
    with closing(batches(workers, datasets=half_broken())) as found:
        sources = Counter(answers[0][0] for answers, _ in drawn(found, 120))
        skips = {name: stream.skips for name, stream in found.streams.items()}
    assert skips["a"].seen == 2 * sources["a"] and not skips["a"].reasons
    assert set(skips["b"].reasons) == {f"sample {i}: b{i} is broken." for i in HALF}
    assert set(skips["c"].reasons) == {"sample 3: c3 is broken."}
    assert "datasets.b: skipped sample 19: b19 is broken." in caplog.text
    assert "datasets.c: skipped sample 3: c3 is broken." in caplog.text


def test_too_much_that_cannot_be_used_names_the_dataset_that_holds_it():
    with (
        closing(batches(2, datasets=half_broken(), max_skip_rate=0.005)) as found,
        pytest.raises(UserError, match="^datasets.b: .* samples can't be used"),
    ):
        drawn(found, 300)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_without_a_usable_sample_ends_the_run_whatever_rate_is_allowed(workers):
    nothing = {"a": Samples("a", 7, frozenset(range(7)))}
    with closing(batches(workers, datasets=nothing)) as found, pytest.raises(UserError, match="1000 of 1000 samples"):
        next(found)
