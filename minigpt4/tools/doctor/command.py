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
from minigpt4.config.arguments import read_config
from minigpt4.config.finding import TINY
from minigpt4.config.schema import Config
from minigpt4.tools.doctor.environment import Line, State, environment

if TYPE_CHECKING:  # slow to import
    from minigpt4.tools.doctor.estimating import Need, Setting

_SHOWN = {  # and the colours of terminals
    "ok": ("ok  ", "32"),
    "warn": ("?   ", "33"),
    "red": ("RED ", "31"),
    "off": ("-   ", "90"),
}
_LARGE = 3e9  # bytes of a file that takes long to read
_CURES = (  # that are tried, in this order, where something does not fit: options, and the phases that they help
    (("model.llm_dtype=bf16",), ("load", "chat", "train")),
    (("model.quantization=8bit",), ("load", "chat", "train")),
    (("model.quantization=4bit",), ("load", "chat", "train")),
    (("model.use_grad_checkpoint=True",), ("train",)),
    (("run.batch_size_train=1", "model.use_grad_checkpoint=True"), ("train",)),
    (("run.batch_size_train=1", "model.use_grad_checkpoint=True", "model.quantization=4bit"), ("train",)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(main=main, model=None, default_config=TINY)
    parser.add_argument("--cfg-path", metavar="CONFIG", help="config to check too, as other commands take it")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--device", metavar="NAME", help="estimate for another device: h100, a100, 3090, 4090, 910b3")
    parser.add_argument("--count", type=positive, default=1, help="of such devices (default: %(default)s)")
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
    config = read_config(args)
    page = Page({"This machine": environment(config)}, [])
    if args.cfg_path or args.options or args.device:
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
    from minigpt4.models.llm import llm_folder
    from minigpt4.models.preflight import llm_outline, preflight
    from minigpt4.models.vision import build_vision
    from minigpt4.tools.doctor.devices import process_memory, this_device
    from minigpt4.tools.doctor.estimating import Setting

    baseline = process_memory()
    problems, files = Problems(), dict[str, Path]()
    vision = problems.attempt(build_vision, config)
    with suppress(UserError):  # it is what the problems say
        preflight(config, vision, problems, files)
    lines = [Line("ok", text) for text in problems.passed] + [Line("warn", text) for text in problems.warnings]
    lines += [Line("red", text) for text in problems]
    lines += [line for file in files.values() for line in _checksum(file, args.checksums)]
    page.lines["The config"] = lines
    quiet = Problems()
    folder = quiet.attempt(llm_folder, config.model.llama_model)
    llm = quiet.attempt(llm_outline, folder, config.model.trust_remote_code) if folder else None
    if vision is None or llm is None or folder is None:
        page.lines["Memory and time"] = [Line("off", "not estimated: that needs the config.json of the LLM")]
        return
    device = _named(args.device) if args.device else this_device(_device_of(config))
    setting = Setting(config, vision, llm, folder, device, baseline, args.count)
    page.lines["Memory and time"] = _estimate(setting, page.needs)


def _device_of(config: Config) -> Any:
    from minigpt4.common.distributed import pick_device

    return Problems().attempt(pick_device, config.run.device) or pick_device("cpu")


def _named(name: str) -> Any:
    from minigpt4.tools.doctor.devices import known_devices

    known = known_devices()
    if name not in known:
        raise UserError(f"--device: '{name}' is unknown.{did_you_mean(name, known)}")
    return known[name]


def _checksum(file: Path, large: bool) -> list[Line]:
    """Whether files that are published under this name have the sha256 that is published."""
    from minigpt4.models.published import published_weights
    from minigpt4.models.tensor_files import weight_files
    from minigpt4.tools.fetch.downloading import sha256_of

    found = []
    for own in weight_files(file) if file.is_dir() else [file]:
        fitting = [w for w in published_weights().values() if own.name in w.sha256]
        if file.is_dir():  # names of parts are everyone's
            fitting = [w for w in fitting if w.hub.rpartition("/")[2] == file.name or _cached_as(w.hub) in str(file)]
        for weights in fitting[:1]:
            if own.stat().st_size > _LARGE and not large:
                found.append(Line("off", f"{own.name}: sha256 not compared; with --checksums it is"))
            elif sha256_of(own) == weights.sha256[own.name]:
                found.append(Line("ok", f"{own.name}: has the sha256 that is published"))
            else:
                cure = f"Delete it, then: minigpt4 fetch {weights.name} --download"
                found.append(Line("red", f"{own}: has another sha256 than is published: damaged, or changed. {cure}"))
    return found


def _cached_as(hub_id: str) -> str:
    return "models--" + hub_id.replace("/", "--")


def _estimate(setting: "Setting", needs: list[dict[str, Any]]) -> list[Line]:
    from minigpt4.tools.doctor.estimating import estimate, fits

    device, lines = setting.device, []
    count = f" x {setting.count}" if setting.count > 1 else ""
    how = "measured just now" if device.measured else "figures of devices.yaml: times are a roofline, the best possible"
    lines.append(Line("ok", f"{device.name}{count}: {device.memory / 1e9:.1f} GB; {how}"))
    for phase, need in estimate(setting).items():
        good = fits(setting, need)
        needs.append({"phase": phase, "fits": good, "memory": need.memory, **asdict(need)})
        text = f"{phase:5} {need.memory / 1e9:6.2f} GB, {_times(phase, need)}"
        if good:
            lines.append(Line("ok", f"{text}: fits"))
        else:
            # training is asked for by few: it is told, and spoils nothing
            state: State = "off" if phase == "train" else "red"
            lines.append(Line(state, f"{text}: does not fit{_cure(setting, phase)}"))
        parts = [f"{part} {size / 1e9:.2f}" for part, size in need.parts.items() if size >= 1e7]
        lines.append(Line("off", "      " + ", ".join(parts)))
    return lines


def _times(phase: str, need: "Need") -> str:
    first = f"{need.seconds:.3g} s"
    if phase == "chat":
        return f"{first} to the first word, {need.per_token:.2g} s a token"
    return f"{first} from a disk of 1 GB/s" if phase == "load" else f"{first} a step"


def _cure(setting: "Setting", phase: str) -> str:
    """The first of a few options with which a phase fits."""
    from minigpt4.tools.doctor.estimating import estimate, fits

    for options, phases in _CURES:
        if phase not in phases:
            continue
        changed = replace(setting, config=_changed(setting.config, options))
        ways = ("load", phase)  # the first is quickly told
        if all(fits(changed, estimate(changed, way)[way]) for way in ways):
            return f"; try --options {' '.join(options)}"
    return "; try a smaller LLM, or a device with more memory"


def _changed(config: Config, options: tuple[str, ...]) -> Config:
    model, run = config.model, config.run
    for option in options:
        key, _, text = option.partition("=")
        group, _, name = key.partition(".")
        value: Any = {"True": True}.get(text, int(text) if text.isdecimal() else text)
        if group == "model":
            model = replace(model, **{name: value})
        else:
            run = replace(run, **{name: value})
    return replace(config, model=model, run=run)


def _text(page: Page) -> str:
    coloured, lines = sys.stdout.isatty(), []
    for what, found in page.lines.items():
        lines += ["", what]
        for line in found:
            mark, colour = _SHOWN[line.state]
            mark = f"\033[{colour}m{mark}\033[0m" if coloured else mark
            lines.append(f"  {mark} {line.text}")
    lines += ["", "All is in order." if page.healthy else "Fix the RED lines above."]
    return "\n".join(lines).lstrip("\n") + "\n"
