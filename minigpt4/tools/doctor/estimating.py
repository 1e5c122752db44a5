"""Memory and time of loading, chat and training: computed from outlines of the parts, without their weights.

What activations take is found by running the parts on tensors without memory, see `dry_runs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from minigpt4.common.errors import Problems
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.llm import dtype_of, embedding_of, quantizes_itself
from minigpt4.models.preflight import memory_of_devices
from minigpt4.models.tensor_files import Outline, TensorFiles, weight_files
from minigpt4.models.vision import VisionPart
from minigpt4.tools.doctor.devices import Device
from minigpt4.tools.doctor.dry_runs import run_llm, run_vision

QUESTION, ANSWER = 100, 300  # tokens of the chat that is estimated, besides a picture's
_PROMPT = 32  # tokens of a training prompt
_PIECES = 0.2e9  # bytes that are read and quantized at once, or packed
_RESERVED = 0.05  # part of an accelerator's memory that its driver, kernels and the allocator's gaps take
MAPPED = "files of the LLM, mapped while they are converted"  # pages that are dropped where memory is short
_DISK = 1e9  # bytes a second: a usual SSD
_QUANTIZED = 1.2e8  # weights that are quantized in a second, as measured on two cores


@dataclass(frozen=True)
class Need:
    """What a phase takes of a device.

    Attributes:
        parts: {what: bytes} at the peak.
        seconds: at best; of a chat until the first token.
        per_token: seconds of each further token of a chat.
        later: bytes after loading, where `parts` are those of a higher peak of loading.
    """

    parts: dict[str, float]
    seconds: float
    per_token: float = 0.0
    later: float = 0.0

    @property
    def memory(self) -> float:
        return sum(self.parts.values())

    @property
    def held(self) -> float:
        """What the system can't take back: all at the peak but mapped files."""
        return max(self.memory - self.parts.get(MAPPED, 0), self.later)


@dataclass(frozen=True)
class Setting:
    """What is estimated.

    Attributes:
        llm, vision: outlines.
        folder: of the LLM; None where its files are not there.
        baseline: bytes of a process that has loaded nothing; counts on CPUs alone.
        count: devices that training is shared out to.
    """

    config: Config
    vision: VisionPart
    llm: PreTrainedModel
    folder: Path | None
    device: Device
    baseline: float
    count: int = 1
    lengths: tuple[int, int] = field(default=(QUESTION, ANSWER))

    @property
    def on_cpu(self) -> bool:
        return self.device.on_cpu

    @property
    def model(self) -> ModelConfig:
        """The model's config, where "auto" is decided."""
        c = self.config.model
        auto = replace(c, llm_dtype="fp32") if self.on_cpu else replace(c, llm_dtype="bf16")
        return auto if c.llm_dtype == "auto" else c


def estimate(s: Setting, *phases: str) -> dict[str, Need]:
    """What phases need, all unless named: "load", "chat", "train". Training is that of one device of `count`."""
    ways, weights = {"load": _load, "chat": _chat, "train": _train}, _weights(s)
    return {phase: ways[phase](s, weights) for phase in phases or ways}


def fits(s: Setting, need: Need) -> bool:
    """Whether a device has room; what the system can take back counts in the peak, but not here."""
    return need.held <= room(s)


def room(s: Setting) -> float:
    """Bytes of a device that a model may take."""
    return s.device.memory * (1 if s.on_cpu else 1 - _RESERVED)


def _weights(s: Setting) -> dict[str, float]:
    place = torch.device("cpu" if s.on_cpu else "meta")  # the kind counts, it need not be there
    (parts,) = list(memory_of_devices(replace(s.model, device_map=None), s.vision, s.llm, place).values())[:1]
    if s.model.device_map:
        parts = {part: size / (s.count if part.startswith("LLM") else 1) for part, size in parts.items()}
    return parts | ({"Python and its libraries": s.baseline} if s.on_cpu else {})


def _load(s: Setting, weights: dict[str, float]) -> Need:
    found = Problems().attempt(TensorFiles, weight_files(s.folder)) if s.folder else None
    files: Mapping[str, Outline] = found or {}  # damaged ones are reported elsewhere
    # where they are not there yet: most are published in half precision
    size = sum(outline.bytes for outline in files.values()) or 2 * sum(p.numel() for p in s.llm.parameters())
    dtypes = {outline.dtype for outline in files.values()}
    seconds = size / _DISK
    if not s.on_cpu:
        return Need(weights, seconds)
    parts = dict(weights)
    if any(True for _ in s.vision.parameters()):  # ONNX Runtime has its own, and reads them
        parts["vision"] = 0.0  # its files are mapped: read where they are first used
    if quantizes_itself(s.model, torch.device("cpu")):
        parts["pieces of weights that are being quantized"] = _PIECES
        seconds += sum(p.numel() for p in s.llm.parameters()) / _QUANTIZED
    elif dtypes == {dtype_of(s.model, torch.device("cpu"))}:
        parts = {part: size for part, size in parts.items() if part.startswith(("Python", "vision"))}
    else:
        parts[MAPPED] = size
    return Need(parts, seconds)


def _chat(s: Setting, weights: dict[str, float]) -> Need:
    prompt, answer = s.lengths[0] + s.vision.rows, s.lengths[1]
    read = run_llm(s.model, s.llm, batch=1, length=prompt, labels=0, amp=None)
    seen = run_vision(s.vision, 1, s.on_cpu)
    held = (prompt + answer) * 1.25 + 64  # see GrowingCache
    parts = weights | {"KV cache": read.kept / prompt * held, "activations": max(seen.peak, read.peak - read.kept)}
    devices = s.count if s.model.device_map else 1  # which take turns
    per_token = max(devices * _llm_bytes(weights) / s.device.bandwidth, _flops_of(s) / s.device.flops)
    seconds = (_vision_flops(s) + _flops_of(s) * prompt) / s.device.flops
    return _after_load(s, weights, Need(parts, seconds, per_token))


def _train(s: Setting, weights: dict[str, float]) -> Need:
    c, run = s.model, s.config.run
    batch, labels = run.batch_size_train, c.max_txt_len
    length = training_length(c, s.vision.rows)
    amp = torch.bfloat16 if run.amp else None
    # with a device map one process trains: each device computes its share of the layers, and the last one the logits
    devices = s.count if c.device_map else 1
    computed = run_llm(c, s.llm, batch, length, labels, amp, devices)
    seen = run_vision(s.vision, batch, False)
    projection = s.vision.width * embedding_of(s.llm).embedding_dim
    trained = projection + computed.trained + sum(p.numel() for p in s.vision.parameters() if "vit" in c.trained)
    shared = s.count if run.shards_weights and not c.device_map else 1
    parts = {part: size / (shared if not part.startswith("Python") else 1) for part, size in weights.items()}
    parts["activations"] = max(seen.peak, computed.peak)
    parts["gradients and states of the optimizer"] = 12 * trained / shared
    rounds = 6 if "llm" in c.trained or c.use_grad_checkpoint else 4  # of 2 operations a weight and token
    flops = batch * (_vision_flops(s) + rounds / 2 * _flops_of(s) * length)
    return _after_load(s, weights, Need(parts, flops / s.device.flops))


def training_length(c: ModelConfig, rows: int) -> int:
    """Tokens of a training sample whose answer is as long as it may be; `rows` stand for its picture."""
    return rows + c.max_txt_len + (_PROMPT if c.prompt_path or c.chat_template else 1)


def _after_load(s: Setting, weights: dict[str, float], need: Need) -> Need:
    """On a CPU the peak of loading counts, where that was higher."""
    load = _load(s, weights)
    return replace(need, parts=load.parts, later=need.memory) if s.on_cpu and load.memory > need.memory else need


def _llm_bytes(weights: dict[str, float]) -> float:
    return sum(size for part, size in weights.items() if part.startswith("LLM"))


def _flops_of(s: Setting) -> float:
    """Operations of the LLM for a token."""
    words = embedding_of(s.llm).weight.numel()
    return 2.0 * (sum(p.numel() for p in s.llm.parameters()) - words)


def _vision_flops(s: Setting) -> float:
    """Operations for a picture: of a transformer on its patches."""
    c = s.config.model
    patches = (c.image_size / c.vit.patch_size) ** 2 + 1
    weights = sum(p.numel() for p in s.vision.parameters()) or s.vision.weight_bytes / 4  # of ONNX, in fp32
    return 2.0 * weights * patches
