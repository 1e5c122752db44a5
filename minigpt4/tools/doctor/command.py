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
from minigpt4.tools.doctor.environment import Line, State, environment

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel

    from minigpt4.models.vision import VisionPart
    from minigpt4.tools.doctor.estimating import Need, Setting

_SHOWN = {  # and the colours of terminals
    "ok": ("ok  ", "32"),
    "warn": ("?   ", "33"),
    "red": ("RED ", "31"),
    "off": ("-   ", "90"),
}
_FULL = "minigpt4_eval"
_LARGE = 3e9  # bytes of a file that takes long to read
_CURES = (  # that are tried, in this order, where something does not fit: options, and the phases that they help
    (("model.llm_dtype=bf16",), ("load", "chat", "train")),
    (("model.device_map=auto",), ("load", "chat")),
    (("run.strategy=fsdp",), ("train",)),
    (("model.quantization=8bit",), ("load", "chat", "train")),
    (("model.quantization=4bit",), ("load", "chat", "train")),
    (("model.use_grad_checkpoint=True",), ("train",)),
    (("run.batch_size_train=1", "model.use_grad_checkpoint=True"), ("train",)),
    (("run.batch_size_train=1", "model.use_grad_checkpoint=True", "model.quantization=4bit"), ("train",)),
)


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
    page.lines["Memory and time"] = _estimate(setting, page.needs)


def _found(config: Config, vision: "VisionPart | None", problems: Problems, large: bool) -> list[Line]:
    """What is said of a config's files; `large`: sha256 of large ones too."""
    from minigpt4.models.preflight import preflight

    files = dict[str, Path]()
    with suppress(UserError):  # it is what the problems say
        preflight(config, vision, problems, files)
    lines = [Line("ok", text) for text in problems.passed] + [Line("warn", text) for text in problems.warnings]
    lines += [Line("red", text) for text in problems]
    compared = {file: _checksum(file, large, config.env.cache_root) for file in files.values()}
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


def _checksum(file: Path, large: bool, cache_root: str) -> list[Line]:
    """Whether files that are published under this name have the sha256 that is published.

    Names such as pytorch_model.bin are everyone's: files of the hub are compared in its cache alone.
    """
    from minigpt4.models.published import cached_file, published_weights
    from minigpt4.models.tensor_files import weight_files
    from minigpt4.tools.fetch.downloading import sha256_of

    found = []
    for own in weight_files(file) if file.is_dir() else [file]:
        known = [w for w in published_weights().values() if own.name in w.sha256]
        fitting = [w for w in known if (_cached_as(w.hub) in own.absolute().parts if w.hub else file.is_file())]
        for weights in fitting[:1]:
            if own.stat().st_size > _LARGE and not large:
                found.append(Line("off", f"{own.name}: sha256 not compared; with --checksums it is"))
            elif sha256_of(own) == weights.sha256[own.name]:
                found.append(Line("ok", f"{own.name}: has the sha256 that is published"))
            elif weights.hub or own.absolute() == cached_file(weights.urls[0], cache_root).absolute():
                cure = f"Delete it, then: minigpt4 fetch {weights.name} --download"
                found.append(Line("red", f"{own}: has another sha256 than is published: damaged, or changed. {cure}"))
            else:  # it may be the user's own
                text = f"{own}: has another sha256 than is published for {weights.name}: damaged, changed, or another"
                found.append(Line("warn", f"{text} file of that name"))
    return found


def _cached_as(hub_id: str) -> str:
    return "models--" + hub_id.replace("/", "--")


def _estimate(setting: "Setting", needs: list[dict[str, Any]]) -> list[Line]:
    from minigpt4.tools.doctor.estimating import estimate, fits

    device, count, model = setting.device, setting.count, setting.config.model
    how = "measured just now" if device.measured else "an estimate from published figures (roofline): it takes longer"
    name = f"{device.name} x {count}" if count > 1 else device.name
    lines = [Line("ok", f"{name}: {device.memory / 1e9:.1f} GB; {how}")]
    if not device.quantizes and (model.low_resource or model.quantization != "none"):
        options = ("model.quantization=none", "model.low_resource=False")
        text = "an LLM in 4 or 8 bits can't be used there, so it is estimated without. Set --options"
        lines.append(Line("red", f"{text} {' '.join(options)}"))
        setting = replace(setting, config=_changed(setting.config, options))
    if count > 1 and not model.device_map:
        lines.append(Line("off", "load and chat use one of them; model.device_map=auto spreads the LLM over all"))
    if count > 1 and model.device_map:
        lines.append(Line("off", "the LLM is spread over all of them; training is one process then, without torchrun"))
    elif count > 1 and not setting.config.run.shards_weights:
        lines.append(Line("off", "each of them trains with all weights; run.strategy=fsdp shares them out"))
    for phase, need in estimate(setting).items():
        good = fits(setting, need)
        needs.append({"phase": phase, "fits": good, "memory": need.memory, **asdict(need)})
        text = f"{phase:5} {_memory(setting, need, width=6)}, {_times(phase, need)}"
        if good:
            lines.append(Line("ok", f"{text}: fits"))
        else:
            # few want to train: it is reported, and fails nothing
            state: State = "off" if phase == "train" else "red"
            lines.append(Line(state, f"{text}: does not fit{_cure(setting, phase)}"))
        parts = [f"{part} {size / 1e9:.2f}" for part, size in need.parts.items() if size >= 1e7]
        lines += [Line("off", "      " + ", ".join(parts))] if parts else []
    return lines


def _times(phase: str, need: "Need") -> str:
    first = readable_time(need.seconds)
    if phase == "chat":
        return f"{first} to the first word, {readable_time(need.per_token)} a token"
    return f"{first} from a disk of 1 GB/s" if phase == "load" else f"{first} a step"


def readable_time(seconds: float) -> str:
    """A time in the unit that is read most easily: "44 min", "3.5 s", "0.09 ms"."""
    units = (("h", 3600, 2 * 3600), ("min", 60, 120), ("s", 1, 1))
    unit, size = next(((unit, size) for unit, size, least in units if seconds >= least), ("ms", 1e-3))
    number = seconds / size
    if unit == "ms" and number < 0.01:
        return "less than 0.01 ms"
    return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"


def _memory(setting: "Setting", need: "Need", width: int = 0) -> str:
    """What a phase takes, and how much of it the system can take back, where all of it has no room."""
    from minigpt4.tools.doctor.estimating import room

    text, dropped = f"{need.memory / 1e9:{width}.2f} GB", need.memory - need.held
    if dropped and need.memory > room(setting):
        text += f", of which {dropped / 1e9:.2f} are mapped files that may be dropped"
    return text


def _cure(setting: "Setting", phase: str) -> str:
    """The first of a few options with which a phase fits; without dropping mapped files, if there is one."""
    from minigpt4.tools.doctor.estimating import estimate, fits, room

    second = ""
    for options, phases in _CURES:
        several = any("device_map" in option or "strategy" in option for option in options)
        quantized = any("quantization" in option for option in options)
        if phase not in phases or several and setting.count == 1 or quantized and not setting.device.quantizes:
            continue
        changed = replace(setting, config=_changed(setting.config, options))
        if not fits(changed, estimate(changed, "load")["load"]):  # which is quick
            continue
        if fits(changed, need := estimate(changed, phase)[phase]):
            cure = f"; try --options {' '.join(options)}, which takes {_memory(changed, need)}"
            if need.memory <= room(changed):
                return cure
            second = second or cure
    return second or "; try a smaller LLM, or a device with more memory"


def _changed(config: Config, options: tuple[str, ...]) -> Config:
    model, run = config.model, config.run
    for option in options:
        key, _, text = option.partition("=")
        group, _, name = key.partition(".")
        value: Any = {"True": True, "False": False}.get(text, int(text) if text.isdecimal() else text)
        if group == "model":
            model = replace(model, **{name: value})
        else:
            run = replace(run, **{name: value})
    return replace(config, model=model, run=run)


def _summary(page: Page) -> str:
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
    lines += ["", _summary(page)]
    return "\n".join(lines).lstrip("\n") + "\n"
