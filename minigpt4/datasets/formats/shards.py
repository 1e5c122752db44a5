"""Image-caption pairs in webdataset shards (LAION, CC, SBU): `KEY.jpg` beside `KEY.json` or `KEY.txt`."""

import glob
import io
import random
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Any, NamedTuple, cast

import webdataset as wds
from torch.utils.data import IterableDataset
from typing_extensions import Self
from webdataset.gopen import gopen_schemes

from minigpt4.common.errors import UserError, first_line
from minigpt4.config.schema import BuildInfo
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.datasets.formats import fields

SHUFFLED_TOGETHER = 1000  # samples, undecoded, that a worker keeps in memory
_ERROR = "__error__"  # a sample's key for what ended its shard


class Position(NamedTuple):
    """Where a stream of samples continues: all samples of shuffled passes over the shards, in blocks shuffled in turn.

    Attributes:
        pass_: how often all shards were passed.
        base: shards of the pass that are left out, as they were done with before.
        shard: of this stream's own of the pass, the one in which the block begins.
        sample: of the shard, the first of the block.
        drawn: samples of the block.
    """

    pass_: int = 0
    base: int = 0
    shard: int = 0
    sample: int = 0
    drawn: int = 0


def expand_shards(key: str, storage: str) -> list[str]:
    """Expands brace lists, globs and folders to shard names; URLs and pipes are left to webdataset.

    Raises:
        UserError: a local shard does not exist, or nothing opens such URLs.
    """
    names = wds.shardlists.expand_urls(storage)
    if storage.startswith("pipe:"):
        return names
    if "://" in storage:
        return [_openable(key, name) for name in names]
    found = [sorted(glob.glob(name if name.endswith(".tar") else f"{name}/*.tar")) for name in names]
    missing = [name for name, files in zip(names, found, strict=True) if not files]
    if missing:
        raise UserError(
            f"{key}: '{missing[0]}' does not exist ({len(missing)} of {len(names)} shards). "
            "Set it to shards such as data/{00000..00099}.tar (`minigpt4 tiny data` writes the tiny ones)."
        )
    return [file for files in found for file in files]


def _openable(key: str, url: str) -> str:
    """What webdataset can open: it leaves s3:// to the program that has its keys."""
    scheme = url.partition("://")[0]
    if scheme == "s3" and shutil.which("aws"):
        return f"pipe:aws s3 cp {shlex.quote(url)} -"
    if scheme == "s3" or scheme not in gopen_schemes:
        cure = "Install AWS's command-line interface, `aws`" if scheme == "s3" else "Name a folder or http(s) URLs"
        raise UserError(f"{key}: '{url}': nothing here opens {scheme}://. {cure}, or set it to pipe:COMMAND.")
    return url


class ShardedCaptionDataset(IterableDataset):
    """Samples {conversation, image_id} of shards.

    `endless` is what training reads. Iterating passes once, in order, each sample going to one worker of one rank: it
    yields a sample's name and what reads it.
    For where a sample's picture and caption are, see `fields`.
    """

    def __init__(self, key: str, storage: str, info: BuildInfo, vis_processor: Any, text_processor: Any, reduced: bool):
        self.vis_processor, self.text_processor = vis_processor, text_processor
        self.image_keys, self.caption_keys = map(fields.lower_fields, (info.image_keys, info.caption_keys))
        self.reduced = reduced  # JPEGs may be decoded at reduced size
        self.shards = expand_shards(key, storage)

    def __iter__(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        rank, ranks, worker, workers = wds.utils.pytorch_worker_info()
        samples = (sample for shard in self.shards for sample in samples_of(shard))
        for raw in islice(samples, rank * workers + worker, None, ranks * workers):
            yield _name(raw), partial(self._read, raw)

    def endless(
        self, start: Position, stream: int, streams: int, seed: str
    ) -> Iterator[tuple[str, Callable[[], dict[str, Any]], Position]]:
        """Yields each sample's name, what reads it, and the position after it, from `start` on.

        Each of so many streams has shards of its own in each pass. They are read ahead by `SHUFFLED_TOGETHER`
        samples, one for each that is drawn.
        """
        raw = self._raw(start, stream, streams, seed)
        block = list(islice(raw, SHUFFLED_TOGETHER))
        drawn = start.drawn
        while True:
            first = block[0][0]
            random.Random(f"{seed} {stream} {first}").shuffle(block)
            following: list[tuple[Position, dict[str, Any]]] = []
            for i in range(drawn, len(block)):
                _, sample = block[i]
                block[i] = None  # type: ignore[call-overload]  # its memory
                following += islice(raw, 1)
                end = i + 1 == len(block) and following[0][0]
                yield _name(sample), partial(self._read, sample), end or first._replace(drawn=i + 1)
            following += islice(raw, SHUFFLED_TOGETHER - len(following))
            block, drawn = following, 0

    def _raw(self, start: Position, stream: int, streams: int, seed: str) -> Iterator[tuple[Position, dict[str, Any]]]:
        """Undecoded samples of this stream's shards, in order, pass after pass, each with its own position."""
        pass_, base, shard, sample, _ = start
        while True:
            order = list(self.shards)
            random.Random(f"{seed} {pass_}").shuffle(order)
            for i, name in enumerate(order[base:][stream::streams]):
                if i < shard:
                    continue
                for j, raw in enumerate(samples_of(name)):
                    if i > shard or j >= sample:
                        yield Position(pass_, base, i, j), raw
            pass_, base, shard, sample = pass_ + 1, 0, 0, 0

    def _read(self, raw: dict[str, Any]) -> dict[str, Any]:
        if error := raw.get(_ERROR):
            raise error
        image, caption = fields.picture(raw, self.image_keys), fields.caption(raw, self.caption_keys)
        answer = self.text_processor(caption)
        if not answer.removeprefix(self.text_processor("")).strip():  # what it puts in front says nothing
            raise UserError(f"its text processor leaves nothing of the caption {caption!r:.60}")
        picture = self.vis_processor.load(io.BytesIO(image), self.reduced)
        return {"conversation": Conversation([Turn([picture], answer)], kind="caption"), "image_id": raw["__key__"]}


def samples_of(shard: str) -> Iterator[dict[str, Any]]:
    """A shard's samples as bytes; what ends it early comes last, as a sample with an `error`."""
    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        errors.append(error)
        return True

    def files() -> Iterator[dict[str, Any]]:
        try:
            with wds.gopen(shard, "rb") as stream:
                yield from _files(stream, shard)
        except Exception as error:  # openers raise many kinds
            note(error)

    # it adds to the arguments of an error
    samples = wds.tariterators.group_by_keys(files(), handler=lambda error: note(UserError(str(error.args[0]))))
    if (first := next(samples, None)) is not None:
        yield first
    elif not errors:
        note(UserError("no samples in it"))
    yield from samples
    for error in errors:
        yield {"__url__": shard, "__key__": "", _ERROR: UserError(first_line(error))}


class _Header(tarfile.TarInfo):
    """A file's header in a shard. tarfile takes a damaged one, or none, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if tarfile.offset == 0 or isinstance(error, EOFHeaderError):
                raise
            raise ReadError(f"damaged at byte {tarfile.offset}: the rest of it is lost") from error


def _files(stream: Any, shard: str) -> Iterator[dict[str, Any]]:
    """A shard's files, as webdataset groups them to samples; `tarfile.ReadError` where it is damaged or cut off."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:
        for info in tar:
            if info.isreg():
                yield {"fname": info.name, "data": cast(IO[bytes], tar.extractfile(info)).read(), "__url__": shard}
                tar.members = []  # type: ignore[attr-defined]  # it would remember all of them
        while block := cast(IO[bytes], tar.fileobj).read(2**16):
            if block.strip(b"\0"):
                raise ReadError(f"damaged at byte {tar.offset}: the rest of it is lost")


def _name(raw: dict[str, Any]) -> str:
    return f"{raw['__url__']}/{raw['__key__']}".rstrip("/")
