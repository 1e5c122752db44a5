"""What a vision part is: a frozen tower from pictures to the rows that the projection reads."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minigpt4.common.errors import UserError
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.llm import DTYPES
from minigpt4.models.parts import PartlyFrozen
from minigpt4.processors.image import CLIP_MEAN, CLIP_STD


class VisionPart(PartlyFrozen):
    """Base of all kinds that `model.vision.name` may name.

    A part is built without memory, on the meta device, so that it can be looked at; then `load` gives it its weights.
    Its children carry names that mean something: `vision.<child>` is how reports name them.

    Attributes:
        settings: the keys of `model.vision`, besides `name`, that the kind reads.
        rows: how many rows the projection reads of a picture.
        width: their width.
        image_size: height and width of a picture in pixels.
    """

    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config, shape: tuple[int, int] | None = None):
        super().__init__()
        self.rows, self.width = shape or self.shape(config)
        self.image_size = config.model.image_size

    @property
    def weight_bytes(self) -> float:
        """What the weights take in memory."""
        return sum(p.nbytes for p in self.parameters())

    @classmethod
    @abstractmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        """`rows` and `width`, known before anything is built.

        Raises:
            UserError: the config, or a folder that it names, does not say.
        """

    @classmethod
    def files(cls, config: Config) -> dict[str, str]:
        """{config key: path or URL} of what `load` reads."""
        return {}

    def check(self, config: Config, files: Mapping[str, Path]) -> None:
        """Looks, before anything is read, whether the weights suit the part; `files` are where `load` will read them.

        Raises:
            UserError: they don't.
        """

    def load(self, config: Config, files: Mapping[str, Path]) -> dict[str, str]:
        """Reads the weights and sets which of them train.

        Returns:
            {child: where its weights are from}.

        Raises:
            UserError: a file does not fit.
        """
        return {}

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Maps images [B, 3, H, W] to features [B, rows, width] in fp32."""

    def blank(self, device: torch.device) -> Tensor:
        """One picture of zeros, as `forward` takes it."""
        return torch.zeros(1, 3, self.image_size, self.image_size, device=device)


class Normalised(nn.Module):
    """Normalises pictures [B, 3, H, W] again: from the mean and standard deviation of a config to a tower's own."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: Config, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        given = config.preprocess.vis_processor.eval
        ours, theirs = torch.tensor([given.mean or CLIP_MEAN, given.std or CLIP_STD]), torch.tensor([mean, std])
        self.register_buffer("scale", (ours[1] / theirs[1]).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def check_fit(what: str, found: Mapping[str, Tensor], built: Mapping[str, Tensor], cure: str) -> None:
    """Checks that weights have the names and shapes of a tower's; `what` and `cure` begin and end the message.

    Raises:
        UserError: they have others.
    """
    if found.keys() != built.keys():
        missing, unknown = sorted(built.keys() - found.keys())[:3], sorted(found.keys() - built.keys())[:3]
        raise UserError(f"{what}: missing {missing}, unknown {unknown}. {cure}")
    for name, weight in found.items():
        if weight.shape != built[name].shape:
            own = list(built[name].shape)
            raise UserError(f"{what}: {name} is {list(weight.shape)}, this model has {own}. {cure}")


def tower_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype of a tower's conv and linear weights: `vit_precision`, or fp32 where they train."""
    return torch.float32 if "vit" in config.trained else DTYPES[config.vit_precision]


def convert_weights(tower: nn.Module, dtype: torch.dtype) -> None:
    """Converts conv and linear layers only, as the original: LayerNorms, q/v biases and embeddings stay fp32."""
    for module in tower.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)


def weights_dtype(tower: nn.Module) -> torch.dtype:
    """The dtype of a tower's conv and linear weights as they are now: on CPUs `compute_in_fp32` may have changed it."""
    weights = (module.weight for module in tower.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    return next((weight.dtype for weight in weights), torch.float32)


def in_half(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Around a tower whose conv and linear weights have this dtype: LayerNorms and biases stay in fp32."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


def joined(tokens: Tensor, number: int) -> Tensor:
    """Joins so many tokens that follow one another, in raster order, into a row: [B, N, D] -> [B, N/n, n*D]."""
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[2] * number)  # len() would be a constant in ONNX


def joined_shape(side: int, width: int, number: int) -> tuple[int, int]:
    """`rows` and `width` of `side` x `side` patch tokens of this width, where so many are joined into a row.

    Raises:
        UserError: one would be left over.
    """
    patches = side * side
    if patches % number:
        raise UserError(f"model.vision.join: {patches} patches can't be joined by {number}. Set it to a divisor, or 1.")
    return patches // number, width * number
