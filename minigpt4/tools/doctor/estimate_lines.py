"""Doctor's lines about memory and time: what each phase takes, whether it fits, and what to try where it does not."""

from dataclasses import asdict, replace
from typing import Any

from minigpt4.config.schema import Config
from minigpt4.tools.doctor.environment import Line, State
from minigpt4.tools.doctor.estimating import Need, Setting, estimate, fits, room

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


def estimate_lines(setting: Setting, needs: list[dict[str, Any]]) -> list[Line]:
    """The lines; what each phase needs is added to `needs`, as `--json` prints it."""
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


def _times(phase: str, need: Need) -> str:
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


def _memory(setting: Setting, need: Need, width: int = 0) -> str:
    """What a phase takes, and how much of it the system can take back, where all of it has no room."""
    text, dropped = f"{need.memory / 1e9:{width}.2f} GB", need.memory - need.held
    if dropped and need.memory > room(setting):
        text += f", of which {dropped / 1e9:.2f} are mapped files that may be dropped"
    return text


def _cure(setting: Setting, phase: str) -> str:
    """The first of a few options with which a phase fits; without dropping mapped files, if there is one."""
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
