"""Pictures that anybody may have sent."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.pictures import open_image


def file_of(image: Image.Image, kind: str = "png", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def bomb(width: int, height: int) -> io.BytesIO:
    """A PNG that says it is large, and holds nothing behind its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""))
    ]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(mode):
    assert open_image(file_of(Image.new(mode, (4, 3)), "tiff")).mode == "RGB"


def test_pictures_are_read_the_right_way_up():
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    assert open_image(file_of(image, "jpeg", exif=exif)).size == (30, 40)


def test_a_picture_may_have_as_many_pixels_as_allowed_and_none_more():
    assert open_image(file_of(Image.new("RGB", (20, 10))), max_pixels=200).size == (20, 10)
    with pytest.raises(UserError, match="more than 0.0002 megapixels. Make it smaller"):
        open_image(file_of(Image.new("RGB", (67, 3))), max_pixels=200)


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_known_by_its_header(size):
    with pytest.raises(UserError, match="more than 64 megapixels"):
        open_image(bomb(*size))


def test_pillows_own_limit_is_told_where_it_is_the_lower_one():
    with pytest.raises(UserError, match="more than 178.957 megapixels"):
        open_image(bomb(30_000, 30_000), max_pixels=10**12)


def test_no_other_program_is_asked_to_read_a_picture():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="can't be read as a picture"):
        open_image(io.BytesIO(postscript))


@given(st.binary(max_size=300), st.integers(0, 120), st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "tiff"]))
def test_any_bytes_are_a_picture_or_an_error_in_words(noise, cut, kind):
    good = file_of(Image.new("RGB", (8, 8), "red"), kind).getvalue()
    try:
        image = open_image(io.BytesIO(good[:cut] + noise), max_pixels=10**6)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
