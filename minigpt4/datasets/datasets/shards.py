"""Image-caption pairs in webdataset shards (LAION, CC, SBU): `KEY.jpg` beside `KEY.json` with a `caption`."""

import glob
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset

from minigpt4.common.errors import UserError

logger = logging.getLogger(__name__)

MOST_SKIPPED = 100


def expand_shards(key: str, storage: str) -> list[str]:
    """Expands brace lists, globs and folders to shard names; URLs and pipes are left to webdataset.

    Raises:
        UserError: a local shard does not exist.
    """
    names = wds.shardlists.expand_urls(storage)
    if storage.startswith("pipe:") or "://" in storage:
        return names
    found = [
        sorted(glob.glob(f"{name}/*.tar")) if not name.endswith(".tar") else sorted(glob.glob(name)) for name in names
    ]
    missing = [name for name, files in zip(names, found, strict=True) if not files]
    if missing:
        raise UserError(
            f"{key}: '{missing[0]}' does not exist ({len(missing)} of {len(names)} shards). "
            "Set it to shards such as data/{00000..00099}.tar (`minigpt4 tiny data` writes the tiny ones)."
        )
    return [file for files in found for file in files]


class ShardedCaptionDataset(IterableDataset):
    """Streams samples {image, answer} from shards.

    For training the stream is endless: every worker of every rank draws shards with replacement, from the seed, and
    shuffles within a buffer. Otherwise it passes once, in order, each sample going to one worker of one rank.
    """

    def __init__(
        self,
        key: str,
        storage: str,
        vis_processor: Callable[..., Any],
        text_processor: Callable[[str], str],
        training: bool,
        seed: int,
    ):
        self.key, self.vis_processor, self.text_processor = key, vis_processor, text_processor
        self.skipped = 0  # in a row
        shards = expand_shards(key, storage)
        open_shards = wds.tarfile_to_samples(handler=self._skip)
        if training:
            source = [
                wds.ResampledShards(shards, seed=seed, deterministic=True),
                open_shards,
                wds.shuffle(1000, seed=seed),
            ]
        else:
            source = [wds.SimpleShardList(shards), open_shards, _own_share]
        self.pipeline = wds.DataPipeline(
            *source,
            wds.decode("pilrgb", handler=self._skip),
            wds.to_tuple("jpg;jpeg;png;webp", "json", handler=self._skip),
            wds.map(self._sample, handler=self._skip),
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.pipeline)

    def _sample(self, pair: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        image, record = pair
        sample = {"image": self.vis_processor(image), "answer": self.text_processor(record["caption"])}
        self.skipped = 0
        return sample

    def _skip(self, error: Exception) -> bool:
        """Passes over an unusable sample; an endless stream of nothing else would hang."""
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise UserError(
                f"{self.key}: {self.skipped} samples in a row can't be used, the last because of {error!r}. "
                "Shards need KEY.jpg and KEY.json with a caption."
            )
        logger.warning("%s: skipped a sample: %r", self.key, error)
        return True


def _own_share(samples: Iterator[Any]) -> Iterator[Any]:
    rank, ranks, worker, workers = wds.utils.pytorch_worker_info()
    return islice(samples, rank * workers + worker, None, ranks * workers)
