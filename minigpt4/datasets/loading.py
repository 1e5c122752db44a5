"""From samples to batches: collation, what can't be used, and the loader of a validation split."""

import logging
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from minigpt4.common.distributed import rank, world_size
from minigpt4.common.errors import UserError, first_line, prefixed
from minigpt4.conversation.conversation import Conversation
from minigpt4.conversation.prompter import IGNORE, Example, Prompter

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Prepare = Callable[[dict[str, Any]], dict[str, Any]]  # raises a `UserError` where the model can't use a sample
SKIPPED = "_skipped"  # the batch's key for what could not be used
_PADDING = {"ids": 0, "mask": 0, "labels": IGNORE}
_LISTED = 20
_GRACE = 30  # seconds
# moves a batch's tensors but for the labels: where they are decides what is computed, and is asked on the CPU
to_device = partial(send_to_device, non_blocking=True, skip_keys="labels")


class Skipped(NamedTuple):
    """Stands for a sample that can't be used."""

    reason: str


@dataclass(frozen=True)
class LayOut:
    """Makes of a dataset's sample what the model learns from; data workers call it.

    Of `conversation`, whose pictures are tensors of one shape, it makes `ids`, `mask` and `labels` [T], see
    `Prompter.example`, and `pictures`, stacked, or None. `image_id` is the sample's name.

    Args:
        training: draws the prompts of captions; else the first is taken, so that validations are alike.

    Raises:
        UserError: an answer is empty, or the sample does not fit the model's limits.
    """

    prompter: Prompter
    training: bool

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        conversation: Conversation = sample["conversation"]
        if not all((turn.answer or "").strip() for turn in conversation.turns):
            raise UserError("its answer is empty")
        example = self.prompter.example(conversation, random.choice if self.training else itemgetter(0))
        pictures = torch.stack(conversation.pictures) if conversation.pictures else None
        return tensors_of(example) | {"pictures": pictures, "image_id": sample["image_id"]}


def tensors_of(example: Example) -> dict[str, torch.Tensor]:
    """The `ids`, `mask` and `labels` [T] of a training layout."""
    ids = torch.tensor([i for i, _ in example])
    labels = torch.tensor([i if learned else IGNORE for i, learned in example])
    return {"ids": ids, "mask": torch.ones_like(ids), "labels": labels}


def collate(samples: list[Any]) -> Batch:
    """Pads on the right what `LayOut` made, puts pictures behind one another, stacks other tensors, lists all else.

    What can't be used only leaves its reason, under the key `SKIPPED`; a batch of nothing else has no other key.
    """
    reasons = [sample.reason for sample in samples if isinstance(sample, Skipped)]
    samples = [sample for sample in samples if not isinstance(sample, Skipped)]
    batch: Batch = {SKIPPED: reasons} if reasons else {}
    for key in samples[0] if samples else ():
        values = [sample[key] for sample in samples]
        if key in _PADDING:
            batch[key] = pad_sequence(values, batch_first=True, padding_value=_PADDING[key])
        elif key == "pictures":
            if shown := [value for value in values if value is not None]:
                batch[key] = torch.cat(shown)
        else:
            batch[key] = torch.stack(values) if isinstance(values[0], torch.Tensor) else values
    return batch


def use(reason_of: str, prepare: Prepare | None, read: Callable[..., Any], *args: Any) -> Any:
    """`read(*args)`, prepared; or a `Skipped` that names `reason_of` and what is wrong with the sample."""
    try:
        sample = read(*args)
        return sample if prepare is None else prepare(sample)
    except Exception as error:  # noqa: B902 whatever is wrong with one sample of millions, the run continues
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return Skipped(f"{reason_of}: {kind}{first_line(error)}")


class SkipCounter:
    """Counts and names what can't be used, and stops when it is too much.

    Args:
        name: the dataset's.
        max_rate: part of the samples that may be unusable; the first 1000 are judged together.
    """

    def __init__(self, name: str, max_rate: float):
        self.name, self.max_rate = name, max_rate
        self.seen = 0
        self.reasons: list[str] = []

    def usable(self, batch: Batch) -> bool:
        """Takes the reasons out of a batch and says whether any sample is left.

        Raises:
            UserError: too many can't be used; the message lists them.
        """
        reasons = batch.pop(SKIPPED, [])
        samples = len(next(iter(batch.values()))) if batch else 0
        self.seen += samples + len(reasons)
        for reason in reasons:
            self.reasons.append(reason)
            logger.warning("datasets.%s: skipped %s (%d of %d)", self.name, reason, len(self.reasons), self.seen)
        none_left = self.seen >= 1000 and len(self.reasons) == self.seen  # else a rate of 1 would look for ever
        if reasons and (none_left or len(self.reasons) > self.max_rate * max(self.seen, 1000)):
            listed = list(dict.fromkeys(self.reasons))
            more = f"\n  and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            allowed = "" if none_left else f", more than run.max_skip_rate={self.max_rate:g} allows"
            cure = "Fix them" if none_left else "Fix or remove them, or raise it"
            raise UserError(
                f"datasets.{self.name}: {len(self.reasons)} of {self.seen} samples can't be used{allowed}. {cure}:\n  "
                + "\n  ".join(listed[:_LISTED])
                + more
            )
        return bool(samples)


def worker_init(_: int) -> None:
    """Signals are for the main process: to finish the step it needs its workers, for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # whose end is the worker's
    torch.set_num_threads(1)  # there are as many workers as cores


class UsableSamples(Dataset):
    """A map-style dataset whose unusable samples are `Skipped`."""

    def __init__(self, dataset: Any, prepare: Prepare | None):
        self.dataset, self.prepare = dataset, prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return use(f"sample {index}", self._prepared, self.dataset.__getitem__, index)

    def _prepared(self, sample: dict[str, Any]) -> dict[str, Any]:
        with prefixed(f"{sample['image_id']}: "):
            return sample if self.prepare is None else self.prepare(sample)


class UsableStream(IterableDataset):
    """One pass over a dataset of shards, whose unusable samples are `Skipped`."""

    def __init__(self, dataset: Any, prepare: Prepare | None):
        self.dataset, self.prepare = dataset, prepare

    def __iter__(self) -> Iterator[Any]:
        for name, read in self.dataset:
            yield use(name, self.prepare, read)


def build_valid_loader(dataset: Any, batch_size: int, num_workers: int, prepare: Prepare | None = None) -> DataLoader:
    """A loader that passes over this rank's share of a validation split; its workers live for one pass.

    Each split has a loader: workers that stayed would be a process more for each split, idle while the run trains.
    """
    usable = (
        UsableStream(dataset, prepare)  # streams share themselves out
        if isinstance(dataset, IterableDataset)
        else Subset(UsableSamples(dataset, prepare), range(rank(), len(dataset), world_size()))
    )
    return DataLoader(
        usable,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        generator=torch.Generator(),  # else it would draw from the run's own
    )
