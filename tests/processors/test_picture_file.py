"""What is read as a picture, and what is refused before it is decoded."""

import ast
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

import minigpt4
from minigpt4.common.errors import UserError
from minigpt4.common.limits import MAX_SCANS, MAX_SIDE
from minigpt4.processors.image import Blip2ImageEvalProcessor
from minigpt4.processors.picture_file import PixelBudget, open_image, open_upright
from tests.picture_files import file_of, jpeg_of_scans

PACKAGE = Path(minigpt4.__file__).parent
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.slow
def test_every_picture_is_opened_by_one_function():
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                found.append(str(file.relative_to(PACKAGE)))
    assert found == [str(Path("processors/picture_file.py"))]


@pytest.mark.parametrize("content", [EPS, b"P6 1 1 255\n\0\0\0", b""])
def test_training_asks_no_other_program_to_read_a_picture(content, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    for read in (open_image, lambda file: Blip2ImageEvalProcessor(32).load(file, True)):
        with pytest.raises(UserError, match="photo.jpg can't be read as a picture: it is not one of JPEG, PNG, WEBP"):
            read(file)


@pytest.mark.parametrize("size", [(1, MAX_SIDE + 1), (MAX_SIDE + 1, 1)])
def test_a_side_has_a_limit(size, tmp_path):
    image = Image.new("L", size)
    with pytest.raises(UserError, match=f"longer side has {MAX_SIDE + 1} pixels; {MAX_SIDE} are the most"):
        open_image(file_of(image))
    image.save(tmp_path / "line.png")
    with pytest.raises(UserError, match="line.png: the picture's longer side"):
        Blip2ImageEvalProcessor(32).load(tmp_path / "line.png", True)
    assert open_image(file_of(Image.new("L", (1, MAX_SIDE)))).size == (1, MAX_SIDE)


@pytest.mark.parametrize(
    "between", [b"", b"\xff\xd9", b"\xff\xfe\x00\x04\xff\xd9"], ids=["plain", "end", "end in words"]
)
def test_the_scans_of_a_jpeg_have_a_limit(between):
    most, more = jpeg_of_scans(MAX_SCANS, between), jpeg_of_scans(MAX_SCANS + 1, between)
    if between == b"\xff\xd9":  # where the picture ends, for libjpeg too
        assert open_image(io.BytesIO(more)).size == (40, 30)
        return
    assert open_image(io.BytesIO(most)).size == (40, 30)
    for read in (open_image, lambda file: Blip2ImageEvalProcessor(8).load(file, True)):
        with pytest.raises(UserError, match=f"a JPEG of more than {MAX_SCANS} scans. Save it again"):
            read(io.BytesIO(more))


def test_scans_of_a_thumbnail_and_of_what_follows_the_picture_do_not_count():
    data = file_of(Image.new("RGB", (40, 30)), "jpeg").getvalue()
    scans = b"\xff\xda" * 2 * MAX_SCANS
    segment = b"\xff\xe1" + struct.pack(">H", len(scans) + 2) + scans
    assert open_image(io.BytesIO(data[:2] + segment + data[2:] + scans)).size == (40, 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_words_that_unpack_to_much_are_not_unpacked(kind):
    data = file_of(Image.new("RGB", (4, 3))).getvalue()
    body = b"a\0\0" + zlib.compress(bytes(70_000_000))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    try:
        image = open_image(io.BytesIO(data[:33] + chunk + data[33:]), PixelBudget())
    except UserError as error:
        assert "too large" in str(error) or "Too much memory" in str(error)
    else:
        assert sum(len(value) for value in image.info.values() if isinstance(value, bytes | str)) < 2_000_000


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_of_several_pictures_in_a_file_the_first_is_read(kind):
    others = [Image.new("RGB", (8, 8), "blue")] * 20
    file = file_of(Image.new("RGB", (8, 8), "red"), kind, save_all=True, append_images=others)
    assert open_image(file).getpixel((4, 4))[0] > 250


def test_a_square_made_at_once_gives_the_same_pixels():
    file, processor = file_of(Image.effect_noise((300, 200), 90).convert("RGB")), Blip2ImageEvalProcessor(32)
    ((whole,), (square,)) = open_upright(file, PixelBudget()), open_upright(file, PixelBudget(), 32)
    assert square.size == (32, 32) and processor(whole).equal(processor(square))


def test_the_number_of_pictures_is_known_before_one_is_opened():
    budget = PixelBudget(shown=[Image.new("RGB", (1, 1))], most=3.5)
    budget.expect(2)
    for refused in (lambda: budget.expect(3), lambda: budget.take(1, 1, 3)):
        with pytest.raises(UserError, match="would have 4 pictures; the model reads 3 at most. Show fewer"):
            refused()
    budget.take(1, 1, 2)
    with pytest.raises(UserError, match="would have 4 pictures"):
        open_image(io.BytesIO(file_of(Image.new("RGB", (1, 1))).getvalue()), budget)
