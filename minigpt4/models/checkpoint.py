"""A model's weights in checkpoints: their names there, and whether they fit. weight_file.py reads the files."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from minigpt4.common.checksums import drop_checksums
from minigpt4.common.errors import Problems, UserError
from minigpt4.models.published import cached_file, fetch_command, is_url
from minigpt4.models.weight_file import WEIGHTS, load_tensors, write_tensors

logger = logging.getLogger(__name__)

# the original's name of each weight, which files keep: (our part or another spelling, its name), applied in this order
_FILE_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^vision\.vit\b", "visual_encoder"),
        (r"^vision\.norm\b", "ln_vision"),
        (r"^vision\.queries\b", "query_tokens"),
        (r"^vision\.qformer\b", "Qformer"),
        (r"^projection\b", "llama_proj"),
        (r"^llm\b", "llama_model"),
        (r"^llm_(proj|model)\.", r"llama_\1."),  # MiniGPT4Qwen
        (r"\.lm_head\.0\.", ".lm_head."),  # the original's peft wraps it
        (r"\.(lora_[AB])\.default\.weight$", r".\1.weight"),  # files name no adapter, as peft's own
        # the Q-Former of transformers, whose names our first files had too
        (r"^Qformer\.layernorm\.", "Qformer.bert.embeddings.LayerNorm."),
        (r"^Qformer\.encoder\.", "Qformer.bert.encoder."),
        (r"^(Qformer\..*\.(?:cross)?attention)\.attention\.", r"\1.self."),
    )
]
TRAINED = ("llama_proj.", "llm_proj.", "lora_")  # what the original's recipes train
QFORMER_UNUSED = re.compile(  # in BLIP-2's files, but not in a Q-Former that reads images only
    r"^(t5_proj|llm_proj|opt_proj|vision_proj|text_proj|itm_head|temp|Qformer\.cls)\b"
    r"|\.position_ids$|embeddings\.(word|position)_embeddings|\.layer\.\d+\.(intermediate|output)\.|^visual_encoder\."
)
_SWITCHES = {
    "lora_": "model.lora_r",
    "Qformer.": "model.freeze_qformer",
    "query_tokens": "model.freeze_qformer",
    "visual_encoder.": "model.freeze_vit",
    "ln_vision.": "model.freeze_vit",
    "llama_model.": "model.unfreeze",
}
ADAPTERS = "LoRA adapters"
_OF_LLMS = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
_CURE = "Set model.ckpt to a checkpoint: a folder that training wrote, or a file of trained weights."
_LLM_WIDTHS = {4096: " (7B)", 5120: " (13B)"}
_IMAGE_WIDTHS = {768: " (Q-Former)", 5632: " (no Q-Former)"}


def file_name(name: str) -> str:
    """The name in files of a weight that a model, or a file, names so: the original's.

    The one map of these names. To go back, name a model's own weights: `{file_name(own): own for own in names}`.
    """
    for pattern, replacement in _FILE_NAMES:
        name = pattern.sub(replacement, name)
    return name


def local_file(key: str, path: str, cache_root: str) -> Path:
    """The local file or folder of a path or URL that the config key names. Nothing is downloaded.

    Raises:
        UserError: it is not there.
    """
    file = cached_file(path, cache_root) if is_url(path) else Path(path).expanduser()
    if file.exists():
        return file
    if is_url(path):
        raise UserError(
            f"{key}: {path} is not on this machine. To download it: {fetch_command(path, cache_root)}; or set {key} "
            "to the file."
        )
    raise UserError(f"{key}: '{path}' does not exist. Set it to a file or folder; see docs/weights.md.")


@dataclass
class LoadReport:
    """Where a model's weights are from, in files' names: those of each checkpoint, sources of the parts as built."""

    loaded: dict[str, list[str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    as_built: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for path, names in self.loaded.items():
            parts = Counter(name.split(".")[0] for name in names)
            lines.append(f"checkpoint {path}: " + ", ".join(f"{part} ({n} tensors)" for part, n in parts.items()))
        lines += [f"ignored: {len(self.ignored)} buffers, such as {self.ignored[0]}"] if self.ignored else []
        lines += [f"{part}: from {source}, not from a checkpoint" for part, source in self.as_built.items()]
        return "\n".join(lines)


def load_checkpoints(
    model: nn.Module, paths: Sequence[str | Path], sources: Mapping[str, str] | None = None
) -> LoadReport:
    """Loads the trainable weights of a model from files that hold all of them together (none: they stay as built).

    Later files win. Buffers of the original (`inv_freq`, `position_ids`) are ignored. `sources` says, for the report,
    where each part, such as `vision.vit`, `llm` or `ADAPTERS`, got its weights before. A part with a source, of which
    no file holds anything, may stay as built: a later stage trains more than the first.

    Raises:
        UserError: a trainable weight is missing, a shape differs, or a file holds an unknown weight or none at all.
            Nothing has changed then.
    """
    named = {file_name(name): p for name, p in model.named_parameters()}
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    origins = {file_name(part): source for part, source in (sources or {}).items()}
    weights, report = fitting_weights(trainable, paths)
    absent = absent_parts(trainable, weights, paths, origins)
    for name, value in weights.items():  # only once all fit
        trainable[name].data.copy_(value)
    for part in sorted(absent) if paths else ():
        logger.warning("model.ckpt holds no %s: they begin as built, from %s", part, origins[part])
    as_built = {_part(name) for name in named if name not in weights}
    report.as_built = {part: origins.get(part, "its initial values") for part in sorted(as_built)}
    if sources is not None:
        logger.info("%s", report)
    return report


def fitting_weights(
    trainable: Mapping[str, Tensor], paths: Sequence[str | Path], outline: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """What files hold of a model's trainable weights, {name in files: weight}; see `load_checkpoints`.

    The model's may be on the meta device. `outline` as in `load_tensors`.

    Raises:
        UserError: with a line for each file that does not fit.
    """
    weights, report, problems = dict[str, Tensor](), LoadReport(), Problems()
    for path in paths:
        with problems.collect():
            own, ignored = trained_weights(path, outline)
            if unknown := sorted(own.keys() - trainable.keys()):
                hint = _hint(unknown)
                if any(name in own for name in _OF_LLMS):
                    hint = f" It is an LLM, which model.llama_model names. {_CURE}"
                if unknown[0].startswith(file_name("projection.")):
                    hint = (
                        " It is of another kind of projection. Set model.projection.name to the one that was trained."
                    )
                raise UserError(f"model.ckpt: {path}: unknown {unknown[:3]}, this model does not train it.{hint}")
            for name, value in own.items():
                check_shape(path, name, value.shape, trainable[name].shape)
            weights |= own
            report.loaded[str(path)] = sorted(own)
            report.ignored += ignored
    problems.raise_all()
    return weights, report


def absent_parts(
    trainable: Collection[str], weights: Collection[str], paths: Sequence[str | Path], origins: Collection[str]
) -> set[str]:
    """The parts that stay as built: of those in `origins`, those that files hold nothing of; all by names in files.

    Raises:
        UserError: files lack a weight of another part, or some of a part's.
    """
    absent = ({_part(name) for name in trainable} - {_part(name) for name in weights}) & set(origins)
    missing = sorted(name for name in set(trainable) - set(weights) if _part(name) not in absent)
    if missing and paths:
        raise UserError(
            f"model.ckpt: {', '.join(map(str, paths))}: missing {missing[:3]}, which this model trains.{_hint(missing)}"
        )
    return absent


def _part(name: str) -> str:
    """The part that a weight belongs to: the first word of its name in files, or the LLM's adapters."""
    depth = 2 if name.startswith("vision.") else 1  # a part that the original does not have
    return ADAPTERS if ".lora_" in name else ".".join(name.split(".")[:depth])


def trained_weights(path: str | Path, outline: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's weights under the original's names, and the names of its buffers; `outline` as in `load_tensors`.

    Raises:
        UserError: the file can't be read, or holds no weights.
    """
    weights, buffers = {}, []
    if Path(path).is_dir() and not (Path(path) / WEIGHTS).is_file():
        raise UserError(f"model.ckpt: '{path}' holds no {WEIGHTS}. {_CURE}")
    try:
        tensors = load_tensors(path, outline)
    except UserError as error:
        raise UserError(f"model.ckpt: {error} {_CURE}") from None
    for key, value in tensors.items():
        key = file_name(key)
        if key.endswith((".inv_freq", ".position_ids")):
            buffers.append(key)
        else:
            weights[key] = value
    if not weights:
        raise UserError(
            f"model.ckpt: {path} holds no trained weights: loading it would change nothing. Name another file."
        )
    return weights, buffers


def check_shape(path: str | Path, name: str, found: Sequence[int], own: Sequence[int]) -> None:
    """Refuses a weight of another shape, and says in words which parts would fit together.

    Raises:
        UserError: the shapes differ.
    """
    if list(found) == list(own):
        return
    words = "use the checkpoint of a model with these settings."
    if ".lora_" in name and min(found) != min(own):
        words = f"its adapters have rank {min(found)}: set model.lora_r={min(found)}."
    elif name.startswith("llama_proj.") and found[0] != own[0]:
        theirs, ours = (f"{shape[0]}{_LLM_WIDTHS.get(shape[0], '')}" for shape in (found, own))
        words = f"it was trained with an LLM of width {theirs}; this LLM has {ours}. Change the LLM or the checkpoint."
    elif name.startswith("llama_proj."):
        theirs, ours = (f"{shape[-1]}{_IMAGE_WIDTHS.get(shape[-1], '')}" for shape in (found, own))
        words = (
            f"it was trained with image embeddings of width {theirs}; this model's have {ours}. "
            "Change model.vision, model.has_qformer or the checkpoint."
        )
    raise UserError(f"model.ckpt: {path}: {name} is {list(found)}, this model has {list(own)}: {words}")


def _hint(names: Sequence[str]) -> str:
    return next((f" {key} says whether it trains." for part, key in _SWITCHES.items() if part in names[0]), "")


def save_weights(weights: Mapping[str, Tensor], folder: str | Path) -> None:
    """Writes trainable weights, named as in the model, to `folder/model.safetensors`, atomically; no checksum.

    There they have the original's names.
    """
    file = Path(folder) / WEIGHTS
    file.parent.mkdir(parents=True, exist_ok=True)
    drop_checksums(file.parent)
    write_tensors({file_name(name): w.contiguous() for name, w in weights.items()}, file)
