"""`minigpt4 show-data`: what training would see of its data: pictures, prompts, answers, and which tokens it learns."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, islice
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
    parser.add_argument("--limit", type=positive, default=3, help="samples of each data set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which samples, and what is drawn (default: %(default)s)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="of another LLM than the config's, such as a small one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def main(args: argparse.Namespace) -> None:
    """Prints samples. One that can't be used says why.

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
    """What is to be said of a sample, as JSON; `skipped` says why it can't be used."""
    from minigpt4.datasets.loading import Skipped, use
    from minigpt4.datasets.streams import seeded

    with seeded(seed):
        sample = use("", None, read)
        if isinstance(sample, Skipped):
            return {"skipped": sample.reason.removeprefix(": ")}
        conversation = sample["conversation"]
        about = {"image_id": sample["image_id"], "files": sample.get("files", [])}
        about["pictures"] = [list(picture.shape) for picture in conversation.pictures]
        try:
            example = prompter.example(conversation, random.choice)
        except UserError as error:
            return about | {"skipped": str(error)}
    learned = sum(is_learned for _, is_learned in example)
    return about | {"tokens": len(example), "learned": learned, "pieces": pieces_of(example, prompter)}


def pieces_of(example: "Example", prompter: "Prompter") -> list[dict[str, Any]]:
    """The runs of a layout: {"text" or "image_rows", "tokens", "learned"}."""
    from minigpt4.conversation.prompter import IMAGE_ROW

    found = []
    for (is_picture, learned), run in groupby(example, key=lambda token: (token[0] == IMAGE_ROW, token[1])):
        ids = [i for i, _ in run]
        what = {"image_rows": len(ids)} if is_picture else {"text": prompter.tokenizer.decode(ids)}
        found.append({**what, "tokens": len(ids), "learned": learned})
    return found


def _in_words(shown: dict[str, Any]) -> str:
    lines = [f"{shown['dataset']}, sample {shown['sample']}"]
    if "image_id" in shown:
        lines[0] += f" ({shown['image_id']})"
        sizes = (f"{width} x {height}" for _, height, width in shown["pictures"])
        files = shown["files"] or [""] * len(shown["pictures"])
        lines += [f"  picture  {file} as {size}" for file, size in zip(files, sizes, strict=False)]
    if "skipped" in shown:
        return "\n".join([*lines, f"  skipped: {shown['skipped']}", ""]) + "\n"
    for learned, run in groupby(shown["pieces"], key=lambda piece: piece["learned"]):
        text = "".join(p["text"] if "text" in p else f"[{p['image_rows']} image rows]" for p in run)
        lines.append(f"  {'learned' if learned else 'read   '}  {json.dumps(text, ensure_ascii=False)}")
    return "\n".join([*lines, f"  tokens   {shown['tokens']}, {shown['learned']} of them learned", ""]) + "\n"
