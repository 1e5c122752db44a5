"""A tower that `minigpt4 export onnx` wrote, run by ONNX Runtime: on CPUs, GPUs, Ascend NPUs (CANN) and others."""

import logging
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import UserError, first_line
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.vision.part import VisionPart

logger = logging.getLogger(__name__)

IMAGE, FEATURES, EMBEDDINGS = "image", "features", "embeddings"  # the graph's input, and its outputs
_KEY = "model.vision.model"
_CPU = "CPUExecutionProvider"
_PROVIDERS = {"npu": "CANNExecutionProvider"}  # of other devices it has the device's own name
_CURE = "other builds have other providers: pip install onnxruntime-gpu, or onnxruntime-cann"


@registry.register_vision("onnx")
class Onnx(VisionPart):
    """The graph's `features`; the projection is the model's own, so that checkpoints apply. It stays frozen.

    `provider` names an execution provider of ONNX Runtime, such as CANNExecutionProvider; by default that of
    `run.device` where it is installed, else the CPU's.
    """

    settings = ("model", "provider")

    def __init__(self, config: Config):
        super().__init__(config)
        if (side := _dimensions(config, IMAGE)[2]) != self.image_size:
            raise UserError(
                f"{_KEY}: '{config.model.vision.model}' reads pictures of {side} pixels. Set model.image_size={side}."
            )
        self.provider, self.session = _provider(config), None  # type: tuple[str, dict[str, Any]], Any
        self._bytes = sum(_sizes(config).values())

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        _, rows, width = _dimensions(config, FEATURES)
        return rows, width

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        return {_KEY: _file(config)}

    @property
    def weight_bytes(self) -> float:
        return self._bytes

    def check(self, config: Config, files: Mapping[str, Path]) -> None:
        for file, needed in _sizes(config).items():
            size = file.stat().st_size if file.is_file() else None
            if size is None or size < needed:
                wrong = "does not exist" if size is None else f"is truncated: it has {size} bytes of {needed}"
                raise UserError(
                    f"{_KEY}: '{file}', which holds weights of '{config.model.vision.model}', {wrong}. Copy both files "
                    "again, or export the tower again: minigpt4 export onnx"
                )

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        ort, file = _import("onnxruntime"), str(files[_KEY])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = ort.InferenceSession(file, options, providers=[self.provider])
        except Exception as error:  # its errors have no base of their own
            raise UserError(f"{_KEY}: '{file}' can't be run: {first_line(error)}. Export it again.") from None
        if (name := self.provider[0]) not in self.session.get_providers():  # it continues with the CPU by itself
            raise UserError(f"model.vision.provider: {name} does not start here. See what ONNX Runtime wrote above.")
        logger.info("ONNX tower: %s, by %s", file, name)
        return {"tower": file}

    def forward(self, images: Tensor) -> Tensor:
        if self.session is None:  # not loaded yet: only the size is asked for
            return images.new_empty(len(images), self.rows, self.width)
        [features] = self.session.run([FEATURES], {IMAGE: images.float().cpu().numpy()})
        return torch.from_numpy(features).to(images.device)


def _dimensions(config: Config, name: str) -> list[int]:
    """The sizes of the graph's input or output of this name; the batch, which is free, is 0. No weight is read."""
    file, graph = config.model.vision.model, _graph(config)
    for value in (*graph.input, *graph.output):
        if value.name == name:
            return [size.dim_value for size in value.type.tensor_type.shape.dim]
    raise UserError(f"{_KEY}: '{file}' has no '{name}'. Export the tower with `minigpt4 export onnx`.")


def _sizes(config: Config) -> dict[Path, int]:
    """{file: bytes that it must have at least} of the graph, and of the files beside it that hold its weights."""
    file = Path(str(config.model.vision.model))
    found = {file: file.stat().st_size}
    for tensor in _graph(config).initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in place:
            data = file.parent / place["location"]
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            found[data] = max(found.get(data, 0), end)
    return found


def _file(config: Config) -> str:
    file, cure = config.model.vision.model, "Set it to the file that `minigpt4 export onnx` wrote."
    if not file:
        raise UserError(f"{_KEY}: it is not set. {cure}")
    if not Path(file).is_file():
        raise UserError(f"{_KEY}: '{file}' is not a file. {cure}")
    return file


def _graph(config: Config) -> Any:
    """The graph, without the weights that lie beside it."""
    onnx, file = _import("onnx"), _file(config)
    try:
        return onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf's
        raise UserError(f"{_KEY}: '{file}' is not an ONNX file: {first_line(error)}.") from None


def _provider(config: Config) -> tuple[str, dict[str, Any]]:
    """The execution provider and its options."""
    device, asked = pick_device(config.run.device), config.model.vision.provider
    available = _import("onnxruntime").get_available_providers()
    own = _PROVIDERS.get(device.type, f"{device.type.upper()}ExecutionProvider")
    if asked and asked not in available:
        raise UserError(f"model.vision.provider: '{asked}' is not there; {', '.join(available)} are ({_CURE}).")
    if not asked and own not in available:
        logger.warning("ONNX Runtime has no %s here, so the tower runs on the CPU (%s)", own, _CURE)
    name = asked or (own if own in available else _CPU)
    return name, {"device_id": device.index} if name == own and device.index is not None else {}


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"model.vision.name: onnx needs the package {name}. Install it: pip install 'minigpt4[onnx]'"
        ) from None
