"""The vision part's outputs on disk: frozen, it sees the same picture every epoch, so it needs to see it but once.

A cache is a folder of safetensors shards: for each sample the features of its pictures [n, rows, width] in bf16, and
its conversation and name as JSON in the header. `fingerprint.json` says what they were computed from.
"""

import hashlib
import json
import logging
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm

from minigpt4.common import distributed
from minigpt4.common.errors import UserError, first_line, writing
from minigpt4.common.files import replace_file
from minigpt4.common.locks import locked
from minigpt4.config.schema import Config, DatasetConfig
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.datasets.formats.annotated import AnnotatedDataset
from minigpt4.datasets.loading import Skipped, UsableSamples
from minigpt4.models.cpu_linear import use_onednn
from minigpt4.models.preflight import preflight
from minigpt4.models.tensor_files import weight_files
from minigpt4.models.vision import build_vision, vision_class
from minigpt4.models.vision.cached_features import CachedFeatures
from minigpt4.models.weight_file import write_tensors
from minigpt4.runners.strategies.strategy import amp_dtype
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

logger = logging.getLogger(__name__)

_KEY = "run.cache_features"
SHARD_SAMPLES = 256  # samples in a file
LOCK_TIMEOUT = 300.0  # seconds: runs that start together look at it in turn
_TEXTS = (".json", ".jsonl", ".parquet")  # files that count to the letter, others by name, size and time
_FINGERPRINT = "fingerprint.json"
_FORMAT = {"format": "2"}  # of a cache; the first said nothing of it, and kept other samples
_CHECKSUM = "features_crc32"  # in a sample's JSON


class FeatureCache:
    """A folder of shards, opened to read. Samples are named `split/dataset/index`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.index: dict[str, tuple[str, str]] = {}  # sample -> its shard, and what is in the header
        self._open: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.index |= {key: (file.name, text) for key, text in self._shard(file.name).metadata().items()}

    def read(self, key: str) -> tuple[Tensor | None, dict[str, Any]]:
        """A sample's features, None where it has no picture or can't be used, and the rest of it.

        Raises:
            UserError: the features are damaged.
        """
        shard, text = self.index[key]
        sample = json.loads(text)
        if sample is None:
            return None, {}
        features = self._shard(shard).get_tensor(key)
        if sample.pop(_CHECKSUM, None) != _crc32(features):
            raise UserError(f"{_KEY}: '{self.folder / shard}' is damaged. Delete that file, and it is filled again.")
        return features, sample

    def write(self, samples: dict[str, tuple[Tensor | None, dict[str, Any] | None]]) -> None:
        """Writes a shard of {sample: (features, the rest)}, atomically. Its first sample names it: no other has it."""
        features = {k: t.to("cpu", torch.bfloat16).contiguous() for k, (t, _) in samples.items() if t is not None}
        texts = {
            key: json.dumps(sample | {_CHECKSUM: _crc32(features[key])} if sample else None)
            for key, (_, sample) in samples.items()
        }
        name = next(iter(samples)).replace("/", "-")
        file = self.folder / f"{name}.safetensors"
        with writing(_KEY, file):
            write_tensors(features, file, texts)

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{_KEY}: {self.folder / name} is damaged ({first_line(error)}). Delete it.") from None
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}  # open files don't go to workers


def _crc32(features: Tensor) -> int:
    return zlib.crc32(features.contiguous().view(torch.uint8).numpy().tobytes())


class CachedDataset(Dataset):
    """A map-style dataset with features in place of pictures; what has no picture comes from the dataset."""

    def __init__(self, cache: FeatureCache, name: str, dataset: Any):
        self.cache, self.name, self.dataset = cache, name, dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features, sample = self.cache.read(f"{self.name}/{index}")
        if features is None:
            return self.dataset[index]
        left, own = iter(features), sample["conversation"]
        own["turns"] = [Turn(**turn) for turn in own["turns"]]
        return sample | {"conversation": Conversation(**own).showing(lambda _: [next(left)])}


def cached_datasets(config: Config, task: ImageTextPretrainTask) -> dict[str, dict[str, Any]]:
    """Builds the datasets of all splits with cached features; what the cache lacks is computed first.

    Raises:
        UserError: a dataset is a stream, or the cache was filled from other files or with other settings.
    """
    run = config.run
    folder = Path(str(run.cache_features))
    logger.info("%s: '%s'; all splits see the evaluation transform: no random crops, exact decoding", _KEY, folder)
    splits = {split: task.build_datasets(split, exact=True) for split in ("train", *run.valid_splits)}
    datasets: dict[str, Any] = {f"{split}/{n}": data for split, own in splits.items() for n, data in own.items()}
    for name, dataset in datasets.items():
        if isinstance(dataset, IterableDataset):
            raise UserError(
                f"{_KEY}: datasets.{name.partition('/')[2]} streams shards; a cache needs data with a length, "
                f"such as cc_sbu_align or instruction. Set {_KEY}=null."
            )
        if isinstance(dataset, AnnotatedDataset):
            raise UserError(
                f"{_KEY}: datasets.{name.partition('/')[2]} draws new questions each time, and a cache would keep "
                f"one. Set {_KEY}=null."
            )
    # the vision part and the LLM are never in memory together
    files = preflight(config, build_vision(config, towers=False))
    with locked(_KEY, folder, LOCK_TIMEOUT):
        if distributed.is_main():
            with writing(_KEY, folder):
                _check_fingerprint(folder, fingerprint(config, files, datasets))
                for left in folder.glob("*.tmp"):  # of a run that was cut off
                    left.unlink()
        distributed.barrier()
        cache = FeatureCache(folder)
        missing = {n: [i for i in range(len(d)) if f"{n}/{i}" not in cache.index] for n, d in datasets.items()}
        distributed.barrier()  # all have looked before the first writes
        if any(missing.values()):
            _fill(cache, datasets, missing, config, files)
            distributed.barrier()
            cache = FeatureCache(folder)
    return {
        split: {name: CachedDataset(cache, f"{split}/{name}", dataset) for name, dataset in own.items()}
        for split, own in splits.items()
    }


@torch.inference_mode()
def _fill(
    cache: FeatureCache, datasets: dict[str, Any], missing: dict[str, list[int]], config: Config, files: dict[str, Path]
) -> None:
    """Encodes this rank's share of the missing samples, in the precision of training."""
    run, device = config.run, distributed.pick_device(config.run.device)
    vision = build_vision(config)
    if isinstance(vision, CachedFeatures):
        raise UserError(
            f"model.vision.name: cached_features sees no pictures, and {_KEY} '{cache.folder}' lacks "
            f"{sum(map(len, missing.values()))} samples. Name the part that filled it, or set {_KEY} to a full one."
        )
    vision.load(config, files)
    vision.eval().to(device)
    if device.type == "cpu":
        use_onednn(vision)
    dtype = amp_dtype(run, device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    shard: dict[str, tuple[Tensor | None, dict[str, Any] | None]] = {}
    for name, indices in missing.items():
        indices = indices[distributed.rank() :: distributed.world_size()]
        keys = (f"{name}/{i}" for i in indices)
        usable = Subset(UsableSamples(datasets[name], None), indices)
        loader = DataLoader(usable, run.batch_size_eval, num_workers=run.num_workers, collate_fn=list)
        for batch in tqdm(loader, desc=f"features of {name}", disable=not distributed.is_main()):
            samples = {next(keys): sample for sample in batch}
            for skipped in [sample for sample in batch if isinstance(sample, Skipped)]:
                logger.warning("%s: %s: %s", _KEY, name, skipped.reason)
            shown = {key: s for key, s in samples.items() if not isinstance(s, Skipped) and s["conversation"].pictures}
            images = {key: sample["conversation"].pictures for key, sample in shown.items()}
            features: dict[str, Tensor] = {}  # [n, rows, width] of a sample's n pictures
            if images:
                pixels = torch.stack([picture for own in images.values() for picture in own]).to(device)
                with autocast:
                    rows = vision(pixels).split([len(own) for own in images.values()])
                features = dict(zip(images, rows, strict=True))
            shard |= {
                key: (features.get(key), _without_pictures(shown[key]) if key in shown else None) for key in samples
            }
            if len(shard) >= SHARD_SAMPLES:
                cache.write(shard)
                shard = {}
    if shard:
        cache.write(shard)


def _without_pictures(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as JSON, with null in the places of its pictures."""
    own = sample["conversation"].showing(lambda _: [None])
    return {"image_id": sample["image_id"], "conversation": asdict(own)}


def fingerprint(config: Config, files: dict[str, Path], datasets: dict[str, Any]) -> dict[str, str]:
    """{config key: value, or a summary of files} of all that features and samples depend on."""
    prints = {} if vision_class(config.model) is CachedFeatures else _vision_print(config, files)
    for split_name, dataset in datasets.items():
        split, _, name = split_name.partition("/")
        prints[f"datasets.{name} ({split})"] = _data_print(config.datasets[name], split, len(dataset))
    return _FORMAT | {key: json.dumps(value) for key, value in prints.items()}


def _vision_print(config: Config, files: dict[str, Path]) -> dict[str, Any]:
    c, prints = config.model, dict[str, Any]()
    for key in ("image_size", "vit_precision", "vit", "has_qformer", "num_query_token", "qformer"):
        value = getattr(c, key)
        prints[f"model.{key}"] = value if isinstance(value, str | int) else asdict(value)
    prints["model.vision"] = {k: v for k, v in asdict(c.vision).items() if v is not None} | {"name": c.vision_kind}
    for key in vision_class(c).files(config):
        prints[key] = _weights_print(files[key])
    return prints | {"run.amp_dtype": str(amp_dtype(config.run, distributed.pick_device(config.run.device)))}


def _weights_print(path: Path) -> list[Any]:
    """Of a file, or of a model's folder; that of a hub id has the name of its revision."""
    if path.is_dir():
        return [path.name, *map(_weights_print, (*sorted(path.glob("*.json")), *weight_files(path)))]
    return [path.name, path.stat().st_size, _ends(path)]


def _ends(file: Path) -> str:
    """A digest of a file's first and last MiB: gigabytes take minutes to read."""
    with file.open("rb") as stream:
        digest = hashlib.sha256(stream.read(2**20))
        stream.seek(-min(2**20, file.stat().st_size), os.SEEK_END)
        digest.update(stream.read())
    return digest.hexdigest()[:16]


def _data_print(block: DatasetConfig, split: str, length: int) -> list[Any]:
    info = block.build_info
    text = block.text_processor.train if split == "train" else block.text_processor.eval
    given = info.storage if split == "train" else info.valid_storage
    storages = [Path(path) for path in (given if isinstance(given, list) else [given])]
    beside = [storage.parent / "image" for storage in storages if storage.is_file()]
    digest = hashlib.sha256()
    for root in (*storages, *([Path(info.images)] if info.images else beside)):
        for file in sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]:
            status = file.stat()
            digest.update(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
            if file.suffix in _TEXTS:
                digest.update(file.read_bytes())
    return [length, asdict(block.vis_processor.eval), asdict(text), info.n_frms, digest.hexdigest()[:16]]


def _check_fingerprint(folder: Path, own: dict[str, str]) -> None:
    """Refuses a cache that was filled from something else, and adds what it lacks, such as a split."""
    file = folder / _FINGERPRINT
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        raise UserError(f"{_KEY}: '{file}' is damaged. Delete '{folder}' to fill it again.") from None
    if found and found.get("format") != own["format"]:
        raise UserError(f"{_KEY}: '{folder}' was filled by an earlier version. Delete the folder to fill it again.")
    for key in found.keys() & own.keys():
        if found[key] != own[key]:
            raise UserError(
                f"{_KEY}: '{folder}' was filled with another {key} ({found[key][:80]}, this run has {own[key][:80]}). "
                f"Delete the folder to fill it again, or set {_KEY} to another."
            )
    replace_file(file, (json.dumps(found | own, indent=2) + "\n").encode())
