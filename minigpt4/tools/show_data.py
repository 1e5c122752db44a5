"""`minigpt4 show-data`: what training would see of its data: pictures, prompts, answers, and which tokens it learns."""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.command_line import positive, require_open, say
from minigpt4.common.errors import UserError, did_you_mean
from minigpt4.config.arguments import add_config_arguments, read_config

if TYPE_CHECKING:  # slow to import
    from minigpt4.conversation.prompter import Example, Prompter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    add_config_arguments(parser)
    parser.add_argument("--dataset", metavar="NAME", help="only this one of the config's data sets")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="(default: %(default)s)")
    parser.add_argument(
        "--limit", type=positive, default=3, help="number of samples shown of each data set (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for choosing samples, instructions and answers (default: %(default)s)"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="folder of the tokenizer to use in place of the config's")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def main(args: argparse.Namespace) -> None:
    """Prints samples as training would have them; of one that it skips, why.

    Raises:
        UserError: a data set or the tokenizer is not there.
    """
    require_open("stdout")
    config = read_config(args)

    from minigpt4.datasets.builders.image_text import build_dataset
    from minigpt4.inference.loading import load_prompter

    if args.dataset and args.dataset not in config.datasets:
        raise UserError(
            f"--dataset: '{args.dataset}' is not in the config.{did_you_mean(args.dataset, config.datasets)}"
        )
    if args.tokenizer:
        config.model.llama_model = args.tokenizer
    prompter = load_prompter(config.model)
    for name in [args.dataset] if args.dataset else list(config.datasets):
        dataset = build_dataset(name, config.datasets[name], args.split)
        for index, read in islice(_drawn(dataset, args.seed), args.limit):
            shown = {"dataset": name, "sample": index, **described(read, prompter, f"{args.seed} {name} {index}")}
            say(json.dumps(shown, ensure_ascii=False) + "\n" if args.json else _in_words(shown))


def _drawn(dataset: Any, seed: int) -> Iterator[tuple[Any, Callable[[], dict[str, Any]]]]:
    """The samples of a data set, and what reads each: shuffled, but for those of shards."""
    from torch.utils.data import IterableDataset

    if isinstance(dataset, IterableDataset):
        yield from dataset
        return
    for index in random.Random(seed).sample(range(len(dataset)), len(dataset)):
        yield index, partial(dataset.__getitem__, index)


def described(read: Callable[[], dict[str, Any]], prompter: "Prompter", seed: str) -> dict[str, Any]:
    """What is to be said of a sample, as JSON; `skipped` says why training can't use it."""
    from minigpt4.conversation.prompter import IGNORE
    from minigpt4.datasets.loading import LayOut, Skipped, use
    from minigpt4.datasets.streams import seeded

    with seeded(seed):
        sample = use("", None, read)
        if isinstance(sample, Skipped):
            return {"skipped": sample.reason.removeprefix(": ")}
        conversation, files = sample["conversation"], sample.get("files", [])
        about = {"image_id": sample["image_id"], "files": files, "sizes": [_size(file) for file in files]}
        about["pictures"] = [list(picture.shape) for picture in conversation.pictures]
        laid_out = use("", LayOut(prompter, training=True), lambda: sample)
        if isinstance(laid_out, Skipped):
            return about | {"skipped": laid_out.reason.removeprefix(": ")}
    example = list(zip(laid_out["ids"].tolist(), (laid_out["labels"] != IGNORE).tolist(), strict=True))
    learned, pieces = sum(is_learned for _, is_learned in example), pieces_of(example, prompter)
    about |= {"prompt": _text_of(pieces, learned=False), "answer": _text_of(pieces, learned=True)}
    cut = max(0, len(prompter.turns(conversation)[1]) - prompter.max_txt_len)
    return about | {"tokens": len(example), "learned": learned, "cut": cut, "pieces": pieces}


def _size(file: str) -> list[int] | None:
    """Width and height of a picture file, before it is resized; None of a video, and of what is within another file."""
    from minigpt4.processors.picture_file import opened

    try:
        with opened(Path(file)) as image:
            return list(image.size)
    except UserError:
        return None


def pieces_of(example: "Example", prompter: "Prompter") -> list[dict[str, Any]]:
    """The runs of a layout: {"text", "ids", "vocabulary" or "image_rows", "tokens", "learned"}."""
    from minigpt4.conversation.prompter import IMAGE_ROW

    found = []
    for (is_picture, learned), run in groupby(example, key=lambda token: (token[0] == IMAGE_ROW, token[1])):
        ids = [i for i, _ in run]
        if is_picture:
            what: dict[str, Any] = {"image_rows": len(ids)}
        else:
            tokenizer = prompter.tokenizer
            what = {"text": tokenizer.decode(ids), "ids": ids, "vocabulary": tokenizer.convert_ids_to_tokens(ids)}
        found.append({**what, "tokens": len(ids), "learned": learned})
    return found


def _text_of(pieces: list[dict[str, Any]], learned: bool) -> str:
    """The first prompt, or the answer to it, with its end symbol."""
    runs = groupby(pieces, key=lambda piece: piece["learned"])
    return next((_joined(run) for is_learned, run in runs if is_learned == learned), "")


def _joined(pieces: Iterable[dict[str, Any]]) -> str:
    return "".join(piece["text"] if "text" in piece else f"[{piece['image_rows']} image rows]" for piece in pieces)


def _in_words(shown: dict[str, Any]) -> str:
    lines = [f"{shown['dataset']}, sample {shown['sample']}"]
    if "image_id" in shown:
        lines[0] += f" ({shown['image_id']})"
        seen = [f"{width} x {height}" for _, height, width in shown["pictures"]]
        files = list(zip(shown["files"], shown["sizes"], strict=True)) or [("", None)] * len(seen)
        for (file, size), resized in zip(files, seen, strict=False):
            original = f" of {size[0]} x {size[1]} pixels," if size else ""
            lines.append(f"  picture: {file}{original} seen as {resized}")
    if "skipped" in shown:
        return "\n".join([*lines, f"  skipped: {shown['skipped']}", ""]) + "\n"
    for learned, run in groupby(shown["pieces"], key=lambda piece: piece["learned"]):
        name = "answer (learned)" if learned else "prompt (not learned)"
        lines.append(f"  {name}: {json.dumps(_joined(run), ensure_ascii=False)}")
    lines.append(f"  tokens: {shown['tokens']}, of which {shown['learned']} are learned")
    if shown["cut"]:
        lines.append(f"  cut: {shown['cut']} tokens, by model.max_txt_len")
    return "\n".join([*lines, ""]) + "\n"
