"""`minigpt4 doctor`: one page that says what is in order and what is not, with what to type."""

import argparse
import json
import logging
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.common.command_line import positive, require_open, say
from minigpt4.common.errors import Problems, UserError, did_you_mean
from minigpt4.config.arguments import add_model_arguments, read_config
from minigpt4.config.finding import TINY
from minigpt4.config.schema import Config
from minigpt4.tools.doctor.environment import Line, environment

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

    from minigpt4.models.vision import VisionPart

_SHOWN = {  # and the colours of terminals
    "ok": ("ok  ", "32"),
    "warn": ("?   ", "33"),
    "red": ("RED ", "31"),
    "off": ("-   ", "90"),
}
_FULL = "minigpt4_eval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, TINY)
    parser.set_defaults(main=main)
    parser.add_argument(
        "--llm",
        choices=["7b", "13b"],
        help=f"estimate for a LLaMA of this size, without any files (default config then: {_FULL})",
    )
    parser.add_argument("--device", metavar="NAME", help="estimate for another device: h100, a100, 3090, 4090, 910b3")
    parser.add_argument(
        "--count", type=positive, default=1, help="of such devices; needs --device (default: %(default)s)"
    )
    parser.add_argument("--checksums", action="store_true", help="compare sha256 of large files too (minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass
class Page:
    """What is printed."""

    lines: dict[str, list[Line]]
    needs: list[dict[str, Any]]

    @property
    def healthy(self) -> bool:
        return not any(line.state == "red" for lines in self.lines.values() for line in lines)


def main(args: argparse.Namespace) -> None:
    """Prints the page, and exits with 1 where something is red.

    Raises:
        UserError: the config can't be read, or the device is unknown.
    """
    require_open("stdout")
    if args.count > 1 and not args.device:
        raise UserError("--count: it counts devices of the kind that --device names. Set --device too.")
    if args.llm:
        args.default_config = _FULL
    config = read_config(args)
    if args.device:  # the config is for that one
        config = replace(config, run=replace(config.run, device="auto"))
    page = Page({"This machine": environment(config)}, [])
    if args.model or args.cfg_path or args.options or args.device or args.llm:
        logging.getLogger().setLevel(logging.ERROR)  # the page says it
        _check_config(page, config, args)
    if args.json:
        found = {what: [asdict(line) for line in lines] for what, lines in page.lines.items()}
        say(json.dumps({"healthy": page.healthy, "checks": found, "estimate": page.needs}, indent=1) + "\n")
    else:
        say(_text(page))
    if not page.healthy:
        sys.exit(1)


def _check_config(page: Page, config: Config, args: argparse.Namespace) -> None:
    from minigpt4.models.vision import build_vision
    from minigpt4.tools.doctor.devices import process_memory, this_device
    from minigpt4.tools.doctor.estimate_lines import estimate_lines
    from minigpt4.tools.doctor.estimating import Setting

    baseline = process_memory()
    device = _named(args.device) if args.device else this_device(_device_of(config))
    if args.device:
        config = replace(config, run=replace(config.run, device="cpu"))  # on which all can be looked at
    problems = Problems()
    vision = problems.attempt(build_vision, config)
    if args.llm:
        lines = [Line("off", f"its files are not looked at: --llm {args.llm} needs none")]
        lines += [Line("red", text) for text in problems]
    else:
        lines = _found(config, vision, problems, args.checksums)
    page.lines["The config"] = [line for line in lines if not (args.device and line.text.startswith("run.device:"))]
    folder, llm = (None, _llama(args.llm)) if args.llm else _llm_of(config)
    if vision is None or llm is None:
        what = "the image tower" if vision is None else "the config.json of the LLM; --llm 7b or --llm 13b needs none"
        page.lines["Memory and time"] = [Line("off", f"not estimated: that needs {what}")]
        return
    setting = Setting(config, vision, llm, folder, device, baseline, args.count)
    page.lines["Memory and time"] = estimate_lines(setting, page.needs)


def _found(config: Config, vision: "VisionPart | None", problems: Problems, large: bool) -> list[Line]:
    """What is said of a config's files; `large`: sha256 of large ones too."""
    from minigpt4.models.preflight import preflight
    from minigpt4.tools.doctor.checksums import checksum_lines

    files = dict[str, Path]()
    with suppress(UserError):  # it is what the problems say
        preflight(config, vision, problems, files)
    lines = [Line("ok", text) for text in problems.passed] + [Line("warn", text) for text in problems.warnings]
    lines += [Line("red", text) for text in problems]
    compared = {file: checksum_lines(file, large, config.env.cache_root) for file in files.values()}
    if unknown := [f"'{file}'" for file, found in compared.items() if not found]:
        lines.append(Line("off", f"sha256 not compared, as none is published: {', '.join(unknown)}"))
    return lines + [line for found in compared.values() for line in found]


def _llm_of(config: Config) -> "tuple[Path | None, PreTrainedModel | None]":
    """The folder and the outline of a config's LLM, where they are there; what is wrong is reported elsewhere."""
    from minigpt4.models.llm import llm_folder
    from minigpt4.models.preflight import llm_outline

    quiet = Problems()
    folder = quiet.attempt(llm_folder, config.model.llama_model)
    return folder, quiet.attempt(llm_outline, folder, config.model.trust_remote_code) if folder else None


def _llama(size: str) -> "PreTrainedModel":
    """The outline of a LLaMA."""
    import torch
    from transformers import AutoModelForCausalLM

    from minigpt4.inference.random_engine import llama_sizes

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(llama_sizes(size))


def _device_of(config: Config) -> Any:
    from minigpt4.common.distributed import pick_device

    return Problems().attempt(pick_device, config.run.device) or pick_device("cpu")


def _named(name: str) -> Any:
    from minigpt4.tools.doctor.devices import known_devices

    known = known_devices()
    if name not in known:
        raise UserError(f"--device: '{name}' is unknown.{did_you_mean(name, known)}")
    return known[name]


def summary(page: Page) -> str:
    """The page's last line."""
    if not page.healthy:
        return "Fix the RED lines above."
    if any(need["phase"] == "train" and not need["fits"] for need in page.needs):
        return "All is in order for a chat; training does not fit."
    return "All is in order."


def _text(page: Page) -> str:
    coloured, lines = sys.stdout.isatty(), []
    for what, found in page.lines.items():
        lines += ["", what]
        for line in found:
            mark, colour = _SHOWN[line.state]
            mark = f"\033[{colour}m{mark}\033[0m" if coloured else mark
            lines.append(f"  {mark} {line.text}")
    lines += ["", summary(page)]
    return "\n".join(lines).lstrip("\n") + "\n"
