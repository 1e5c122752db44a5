"""The batches of one dataset as a function of seed and position: which samples they hold, and where they continue."""

import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from minigpt4.common.distributed import rank, world_size
from minigpt4.common.errors import UserError
from minigpt4.config.schema import RunConfig
from minigpt4.datasets.formats.shards import Position
from minigpt4.datasets.loading import Batch, Prepare, SkipCounter, Skipped, UsableSamples, collate, use

logger = logging.getLogger(__name__)

POSITION = "_position"  # a batch's key: (its dataset or its worker, where the stream continues after it)
_MOST_WAITING = 100  # reasons that a worker keeps before it reports them


@contextmanager
def seeded(seed: str) -> Iterator[None]:
    """Random numbers that depend on `seed` alone; those of the process continue afterwards as if nothing had been."""
    state, torch_state = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed would seed all devices, slowly
    try:
        yield
    finally:
        random.setstate(state)
        torch.set_rng_state(torch_state)


class _Stream:
    """Batches of one dataset: where they continue, and what of them can't be used.

    Subclasses say how a pass over the data is shared by ranks and workers.

    Attributes:
        position: where the stream continues, in numbers and lists of them.
    """

    length: int | None = None
    position: dict[str, Any]

    def __init__(self, name: str, dataset: Any, batch_size: int, run: RunConfig, prepare: Prepare | None):
        self.name, self.dataset, self.batch_size, self.run, self.prepare = name, dataset, batch_size, run, prepare
        self.seed = f"{run.seed} {name}"
        self.skips = SkipCounter(name, run.max_skip_rate)
        self.rank, self.ranks = rank(), world_size()
        self.layout = {"processes": self.ranks}

    def usable(self, batch: Batch) -> bool:
        """Records where the stream continues after a batch, counts what can't be used; whether anything is left.

        Raises:
            UserError: too much can't be used.
        """
        self._passed(*batch.pop(POSITION))
        return self.skips.usable(batch)

    def _passed(self, of: Any, position: Any) -> None:
        """Continues after a batch: `of` its dataset or worker, from `position` on."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {"layout": self.layout, **self.position}

    def resume(self, states: list[dict[str, Any]]) -> None:
        """Continues from the states of all ranks."""
        if states and states[0]["layout"] == self.layout and len(states) == self.ranks:
            self.position = {key: states[self.rank][key] for key in self.position}
        elif states:
            where = self._continue_differently(states)
            are, were = (", ".join(f"{n} {of}" for of, n in x.items()) for x in (self.layout, states[0]["layout"]))
            logger.warning("datasets.%s: %s now, %s before; it continues from %s", self.name, are, were, where)

    def _continue_differently(self, states: list[dict[str, Any]]) -> str:
        """Continues from what another layout of processes and workers had done; returns where that is."""
        raise NotImplementedError


class MapStream(_Stream):
    """Passes over a map-style dataset, shuffled again each time, an equal part to each rank.

    A position is the number of the `pass`, its `base`, and the batches `drawn` of it. A pass is the shuffled order from
    `base` on, which is 0 but for the pass that another layout had started.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.layout["samples in a batch"] = self.batch_size
        self.position = {"pass": 0, "base": 0, "drawn": 0}
        self.length = self._pass_length(0)
        if not self.length:
            raise UserError(
                f"run.batch_size_train: {self.batch_size} is more than the {len(self.dataset) // self.ranks} samples "
                f"that each of {self.ranks} processes gets of {self.name}. Use a smaller batch or more data."
            )

    def _pass_length(self, base: int) -> int:
        return (len(self.dataset) - base) // self.ranks // self.batch_size

    def to_come(self) -> Iterator[tuple[dict[str, int], list[int]]]:
        """The indices of each batch to come, with the position after it."""
        pass_, base, drawn = (self.position[key] for key in ("pass", "base", "drawn"))
        while True:
            order = list(range(len(self.dataset)))
            random.Random(f"{self.seed} {pass_}").shuffle(order)
            mine = order[base:][self.rank :: self.ranks]
            for i in range(drawn, self._pass_length(base)):
                yield (
                    {"pass": pass_, "base": base, "drawn": i + 1},
                    mine[i * self.batch_size : (i + 1) * self.batch_size],
                )
            pass_, base, drawn = pass_ + 1, 0, 0

    def _passed(self, of: str, position: dict[str, int]) -> None:
        self.position = position

    def _continue_differently(self, states: list[dict[str, Any]]) -> str:
        # a rank may have drawn more, in place of batches of which nothing could be used
        last = min(states, key=lambda state: (state["pass"], state["drawn"]))
        base = last["base"] + last["drawn"] * math.prod(last["layout"].values())
        self.position = {"pass": last["pass"], "base": base, "drawn": 0}
        return f"sample {base} of pass {last['pass']}"


class MapBatches(Dataset):
    """Batches of map-style datasets, each of one dataset; each sample has random numbers of its own."""

    def __init__(self, streams: dict[str, MapStream]):
        self.samples = {name: UsableSamples(stream.dataset, stream.prepare) for name, stream in streams.items()}
        self.seeds = {name: stream.seed for name, stream in streams.items()}

    def __getitem__(self, request: tuple[str, dict[str, int], list[int]]) -> Batch:
        name, position, indices = request
        samples = []
        for index in indices:
            with seeded(f"{self.seeds[name]} {position['pass']} {index}"):
                samples.append(self.samples[name][index])
        return collate(samples) | {POSITION: (name, position)}


class ShardStream(_Stream):
    """Batches of shards; each worker of each rank has shards of its own, and the workers take turns.

    A position is the number of batches `drawn`, of all workers, and each worker's own of the `positions`.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.workers = self.layout["workers"] = max(self.run.num_workers, 1)
        self.position = {"drawn": 0, "positions": [list(Position())] * self.workers}
        readers = self.ranks * self.workers
        if (shards := len(self.dataset.shards)) < readers:
            raise UserError(
                f"run.num_workers: {self.workers} on each of {self.ranks} processes need {readers} shards, and "
                f"{self.name} has {shards}. Set it to {shards // self.ranks}, or make more, smaller shards."
                if shards >= self.ranks
                else f"datasets.{self.name}: {self.ranks} processes need as many shards, and it has {shards}. Make "
                "more, smaller shards, or use fewer processes."
            )

    def _passed(self, of: int, position: Position) -> None:
        positions = list(self.position["positions"])
        positions[of] = list(position)
        self.position = {"drawn": self.position["drawn"] + 1, "positions": positions}

    def _continue_differently(self, states: list[dict[str, Any]]) -> str:
        positions = [Position(*p) for state in states for p in state["positions"]]
        last = min((p.pass_, p.shard) for p in positions)  # each has done with as many, or is a pass ahead
        base = next(p.base for p in positions if (p.pass_, p.shard) == last) + last[1] * len(positions)
        self.position["positions"] = [list(Position(last[0], base))] * self.workers
        return f"shard {base} of pass {last[0]}"


class ShardBatches(IterableDataset):
    """Batches of one worker, each with the position after it."""

    def __init__(self, stream: ShardStream):
        self.stream = stream

    def __iter__(self) -> Iterator[Batch]:
        own, info = self.stream, get_worker_info()
        # the loader asks worker 0 first: it is to be the one whose turn it was
        worker = ((info.id if info else 0) + own.position["drawn"]) % own.workers
        start, number = Position(*own.position["positions"][worker]), own.rank * own.workers + worker
        samples: list[Any] = []
        for name, read, position in own.dataset.endless(start, number, own.ranks * own.workers, own.seed):
            with seeded(f"{own.seed} {number} {position}"):
                samples.append(use(name, own.prepare, read))
            skipped = sum(isinstance(sample, Skipped) for sample in samples)
            if len(samples) - skipped == own.batch_size or skipped == _MOST_WAITING:
                yield collate(samples) | {POSITION: (worker, position)}
                samples = []
