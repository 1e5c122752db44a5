"""Image processors: PIL image -> normalised tensor [3, image_size, image_size]."""

import math
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def open_image(file: Path | BinaryIO, reduced_size: int | None = None) -> Image.Image:
    """Reads a picture as RGB.

    Args:
        reduced_size: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side gets shorter than this:
            faster, and not to the bit what resizing the whole gives.

    Raises:
        UserError: the file is no picture, or a damaged one.
    """
    try:
        with Image.open(file) as image:
            if reduced_size:
                image.draft(None, (reduced_size, reduced_size))
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, NotImplementedError, Image.DecompressionBombError) as error:
        name = f"{file} can't" if isinstance(file, Path) else "can't"
        raise UserError(f"{name} be read as a picture: {error}. Remove it and its records, or mend it.") from None


def _compose(resize: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> transforms.Compose:
    # the resize works on the PIL image: resizing the tensor gives other pixels than the weights were trained with
    return transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(mean, std)])


@registry.register_processor("blip2_image_eval")
class Blip2ImageEvalProcessor:
    """Bicubic resize to a square (aspect ratio not kept, no crop), then CLIP's normalisation.

    Attributes:
        reduced_size: pixels of a picture's sides that training needs, see `open_image`.
    """

    def __init__(self, image_size: int = 224, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD):
        size = (image_size, image_size)
        self.reduced_size = _reduced(image_size, 0.5)
        self.transform = _compose(transforms.Resize(size, InterpolationMode.BICUBIC), mean, std)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image)


@registry.register_processor("blip2_image_train")
class Blip2ImageTrainProcessor(Blip2ImageEvalProcessor):
    """A random crop of `min_scale`..`max_scale` of the area, resized: what the released weights were trained with.

    `random_resized_crop` False resizes the whole image, as the original does since November 2023.
    """

    def __init__(
        self,
        image_size: int = 224,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        random_resized_crop: bool = True,
    ):
        super().__init__(image_size, mean, std)
        if random_resized_crop:
            scale = (min_scale, max_scale)
            crop = transforms.RandomResizedCrop(image_size, scale=scale, interpolation=InterpolationMode.BICUBIC)
            self.transform = _compose(crop, mean, std)
            self.reduced_size = _reduced(image_size, min_scale)


def _reduced(image_size: int, min_scale: float) -> int:
    """Pixels a picture's side needs for training: its smallest crop, of aspect ratio 3/4, is not to be enlarged."""
    return math.ceil(image_size / math.sqrt(min_scale * 3 / 4))
