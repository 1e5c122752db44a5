"""Image processors: PIL image -> normalised tensor [3, image_size, image_size]."""

from pathlib import Path
from typing import BinaryIO

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import normalize, pil_to_tensor

from minigpt4.common.registry import registry
from minigpt4.processors.picture_file import opened, rgb, squared

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@registry.register_processor("blip2_image_eval")
class Blip2ImageEvalProcessor:
    """Bicubic resize to a square (aspect ratio not kept, no crop), then CLIP's normalisation."""

    def __init__(self, image_size: int = 224, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD):
        self.image_size, self.mean, self.std = image_size, list(mean), list(std)

    def __call__(self, image: Image.Image) -> Tensor:
        return self._pixels(image, self.box(image), 1)

    def load(self, file: Path | BinaryIO, reduced: bool) -> Tensor:
        """Reads a picture; raises as `open_image`.

        Args:
            reduced: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as what is used of it needn't be
                enlarged for that: faster, the same region to half a pixel, and not to the bit what the whole gives.
        """
        with opened(file) as image:
            left, top, right, bottom = box = self.box(image)
            whole = image.size
            if reduced:
                fit = min(right - left, bottom - top) // self.image_size
                scale = next((scale for scale in (8, 4, 2) if scale <= fit), 1)
                image.draft(None, (whole[0] // scale, whole[1] // scale))
            picture = rgb(image)
        return self._pixels(picture, box, scale if picture.size != whole else 1)

    def box(self, image: Image.Image) -> _Box:
        """What is used of an image, of which nothing but the header may be read yet."""
        return (0, 0, *image.size)

    def _pixels(self, image: Image.Image, box: _Box, scale: int) -> Tensor:
        """The box of an image that was decoded at 1/scale."""
        if scale == 1:
            pixels = pil_to_tensor(squared(image.crop(box), self.image_size))
        else:  # which the decoding gave already: torch's is off by one level of 255 at most, and twice as fast
            left, top, right, bottom = (round(edge / scale) for edge in box)
            part = pil_to_tensor(image.crop((left, top, right, bottom)))
            pixels = interpolate(part[None], (self.image_size, self.image_size), mode="bicubic", antialias=True)[0]
        pixels = pixels.contiguous().float().div_(255)  # ToTensor and Normalize, with fewer copies
        return normalize(pixels, self.mean, self.std, inplace=True)


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
        self.crop = RandomResizedCrop(image_size, (min_scale, max_scale)) if random_resized_crop else None

    def box(self, image: Image.Image) -> _Box:
        if self.crop is None:
            return super().box(image)
        top, left, height, width = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
        return (left, top, left + width, top + height)
