"""`minigpt4 fetch`: what the published models are made of, where it comes from, and where it goes."""

import argparse
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigpt4.common.command_line import require_open, say
from minigpt4.common.errors import Problems, UserError
from minigpt4.common.wrong_files import what_is_wrong
from minigpt4.config.schema import EnvConfig
from minigpt4.models.published import (
    Model,
    Weights,
    cached_file,
    find_weights,
    published_models,
    published_weights,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a model, weights, a hub id or a URL (default: all models, in short)"
    )
    parser.add_argument("--download", action="store_true", help="download what is missing, and check all of it")
    parser.add_argument(
        "--target", type=Path, metavar="DIR", help="folder for the files (default: caches, where configs find them)"
    )
    parser.add_argument(
        "--mirror",
        type=_address,
        metavar="URL",
        help="server to ask first for single files, and in place of the hub for repositories, as which it must answer",
    )
    parser.add_argument(
        "--cache",
        default=EnvConfig.cache_root,
        metavar="DIR",
        help="env.cache_root of the config (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _address(text: str) -> str:
    """An argument's type."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address. Begin it with https:// or http://.")
    return text


@dataclass(frozen=True)
class Item:
    """Weights with the config key that names them ("" alone), and where they go: a file, a folder, or a hub id."""

    key: str
    weights: Weights
    value: str
    here: bool


def main(args: argparse.Namespace) -> None:
    """Prints what the names need, and downloads it if asked to.

    Raises:
        UserError: a name is unknown, or something can't be downloaded.
    """
    require_open("stdout")
    if args.download and not args.names:
        raise UserError(f"fetch: name what to download, one of: {', '.join(published_models())}")
    models = published_models()
    if not args.names and not args.json:
        say(_overview(models))
        return
    failed, needed = Problems(), {}
    for name in args.names or models:  # an unknown one ends it before the first download
        needs = models[name].needs if name in models else {"": name}
        needed[name] = {key: find_weights(own) for key, own in needs.items()}
    for name, weights in needed.items():
        model = models.get(name)
        for own in weights.values() if args.download else ():
            failed.attempt(_download, own, args)
        items = [_item(key, own, args) for key, own in weights.items()]
        command = _command(model, items, args) if model else None
        if args.json:
            say(json.dumps(_plain(name, items, command)) + "\n")
        else:
            say(_page(model.what if model else name, items, command))
    failed.raise_all()


def _item(key: str, weights: Weights, args: argparse.Namespace) -> Item:
    place = _place(weights, args)
    if place is None:
        return Item(key, weights, weights.hub, _in_hub_cache(weights.hub))
    here = _complete(place) if weights.hub else place.is_file() and what_is_wrong(place) is None
    return Item(key, weights, str(place), here)


def _place(weights: Weights, args: argparse.Namespace) -> Path | None:
    """Where weights go; None for the hub's cache."""
    if args.target is None:
        return None if weights.hub else cached_file(weights.urls[0], args.cache)
    return args.target.absolute() / (weights.file or weights.hub.rpartition("/")[2])


def _download(weights: Weights, args: argparse.Namespace) -> None:
    from minigpt4.tools.fetch.downloading import download_file, download_repository

    place = _place(weights, args)
    if weights.hub:
        download_repository(weights, place, args.mirror)
    else:
        assert place is not None
        download_file(weights, place, args.mirror)


def _in_hub_cache(hub_id: str) -> bool:
    from huggingface_hub import snapshot_download

    try:
        return _complete(Path(snapshot_download(hub_id, allow_patterns="config.json", local_files_only=True)))
    except OSError:
        return False


def _complete(folder: Path) -> bool:
    """Whether a folder holds a model's settings and weights."""
    if not (folder / "config.json").is_file():
        return False
    from minigpt4.models.tensor_files import complete_weight_files  # slow to import

    try:
        return bool(complete_weight_files("", folder))
    except UserError:
        return False


def _command(model: Model, items: list[Item], args: argparse.Namespace) -> str:
    """The command that uses a model from where its files go; a default URL is found in its cache without an option."""
    found = args.target is None
    options = [f"{i.key}={i.value}" for i in items if not (found and i.key.endswith(("vit_model", "q_former_model")))]
    if found and items and args.cache != EnvConfig.cache_root:
        options.append(f"env.cache_root={args.cache}")
    words = ["minigpt4", *model.runs.split(), *(["--options", *options, *model.options] if options else [])]
    return shlex.join(words)


def _overview(models: dict[str, Model]) -> str:
    known, lines = published_weights(), [""]
    width = max(map(len, (*models, *known)))
    for model in models.values():
        sizes = [known[name].size for name in model.needs.values()]
        lines.append(f"  {model.name:{width}}  {_gigabytes(sum(size or 0 for size in sizes)):>8}  {model.what}")
    lines += ["", "Weights that models need, or that can be fetched alone:"]
    used = known.values()
    lines += [f"  {own.name:{width}}  {_gigabytes(own.size):>8}  {own.what}" for own in used]
    lines += ["", "What a model needs, and where it goes:  minigpt4 fetch NAME"]
    lines += ["To download it:                         minigpt4 fetch NAME --download", ""]
    return "Models:" + "\n".join(lines)


def _page(title: str, items: list[Item], command: str | None) -> str:
    lines = [title]
    for item in items:
        own = item.weights
        lines += ["", f"  {item.key + ': ' if item.key else ''}{own.what or own.name}"]
        lines += [f"    from     {url}" for url in own.urls or (own.source,)]
        lines += [f"    size     {_gigabytes(own.size)}", f"    licence  {own.license}"]
        lines += [f"    sha256   {_digest(own)}"]
        if own.hub:
            lines += ["    files    config.json and other small files; model*.safetensors, or else pytorch_model*.bin"]
        place = f"{_hub_folder(own.hub)}; or any folder that the key names" if item.value == own.hub else item.value
        lines += [f"    goes to  {place}", f"    is here  {'yes' if item.here else 'no'}"]
    if not items:
        lines += ["", "  Nothing to fetch: it comes with the package."]
    if any(not item.here for item in items):
        lines += ["", "To download it: the same command with --download. For a machine without a connection: add"]
        lines += ["--target DIR elsewhere, copy DIR, and use the files from there."]
    lines += ["", f"Then: {command}"] if command else []
    return "\n".join(lines) + "\n\n"


def _hub_folder(hub_id: str) -> Path:
    """Where the hub's cache has a repository, whether it is there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")


def _digest(weights: Weights) -> str:
    if weights.hub:
        return "compared with what the hub says of each file"
    return weights.sha256.get(weights.file, "not published")


def _gigabytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _plain(name: str, items: list[Item], command: str | None) -> dict[str, Any]:
    rows = [{**asdict(item.weights), "key": item.key, "to": item.value, "here": item.here} for item in items]
    return {"name": name, "weights": rows, "command": command}
