"""Pictures of strangers: from a URL to the pixels that the model sees, within limits."""

import base64
import binascii
import io

from PIL import Image, ImageOps

from minigpt4.common.errors import UserError, first_line

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # others of Pillow's start programs or are hardly tested


def data_of(url: str) -> bytes:
    """The bytes of a `data:` URL.

    Raises:
        UserError: it holds no base64.
    """
    kind, comma, data = url.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise UserError(f"'{url[:40]}' is no picture in base64. Write data:image/png;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the base64 of a picture is broken: {first_line(error)}. Send it again.") from None


def read_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Reads a picture as RGB, the way up that its camera meant; of an animation the first frame.

    Raises:
        UserError: it is none, it is damaged, or it has more than `max_pixels`, which is checked before it is unpacked.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"a picture of {image.width} x {image.height} is larger than {max_pixels} pixels. Make it smaller."
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit is met on opening
        raise UserError(f"a picture is larger than {max_pixels} pixels. Make it smaller.") from None
    except Image.UnidentifiedImageError:
        raise UserError("a picture can't be read: these bytes are none. Send a JPEG or PNG.") from None
    except Exception as error:  # Pillow's readers raise many kinds
        raise UserError(f"a picture can't be read: {first_line(error).rstrip('.')}. Send a JPEG or PNG.") from None
