"""Pictures that anybody may have sent."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.inference.pictures import Picture, Video
from minigpt4.processors.picture_file import PixelBudget, open_image
from tests.picture_files import bomb, file_of, write_video

LEVELS = np.array([[0, 255, 256, 32768, 65535]])
GREY_16, OTHER_ENDIAN = (
    Image.frombytes(mode, (5, 1), LEVELS.astype(t)) for mode, t in (("I;16", "<u2"), ("I;16B", ">u2"))
)


@pytest.mark.parametrize(
    ("image", "kind", "pixels"),
    [
        (Image.new("1", (1, 1), 1), "png", [(255, 255, 255)]),
        (Image.new("L", (1, 1), 90), "png", [(90, 90, 90)]),
        (Image.new("P", (1, 1)), "png", [(0, 0, 0)]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 4)), "png", [(1, 2, 3)]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "tiff", [(255, 0, 0)]),
        (Image.new("CMYK", (1, 1), (255, 255, 0, 0)), "tiff", [(0, 0, 255)]),
        (GREY_16, "png", [(v, v, v) for v in (0, 0, 1, 128, 255)]),
        (GREY_16, "tiff", [(v, v, v) for v in (0, 0, 1, 128, 255)]),
        (OTHER_ENDIAN, "tiff", [(v, v, v) for v in (0, 0, 1, 128, 255)]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_any_mode_becomes_rgb(image, kind, pixels):
    opened = open_image(file_of(image, kind))
    assert opened.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(opened)[0]] == pixels


@pytest.mark.parametrize("mode", ["I", "F"])
def test_brightness_of_no_known_scale_is_refused(mode):
    with pytest.raises(UserError, match="brightness has 32 bits, and nothing says what is white; save it with 8 or 16"):
        open_image(file_of(Image.new(mode, (4, 3)), "tiff"))


def test_pictures_are_read_the_right_way_up():
    image = Image.new("RGB", (40, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    file = file_of(image, "jpeg", exif=exif)
    assert open_image(file, upright=True).size == (30, 40)
    assert open_image(file).size == (40, 30)  # training does as the original


def photo(kind: str, **options) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    return file_of(image, kind, **options, **({"exif": exif} if kind == "jpeg" else {})).getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (photo("jpeg", quality=90), "jpeg"),
        (photo("mpo", append_images=[Image.new("RGB", (40, 30))], save_all=True), "jpeg"),  # as some phones do
        (photo("webp", lossless=False), "webp"),
        (photo("tiff", compression="jpeg"), "tiff"),
        (photo("gif"), "gif"),
    ],
    ids=["jpeg", "mpo", "webp", "tiff", "gif"],
)
def test_a_picture_travels_as_the_file_that_it_was(data, kind, tmp_path):
    (tmp_path / "photo").write_bytes(data)
    picture = Picture.from_file(tmp_path / "photo")
    url = picture.to_url()
    assert url == f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    other = Picture.from_url(url)
    assert np.array_equal(other.image, picture.image)
    assert other.to_url() == url


def test_a_file_that_is_larger_than_its_pixels_is_not_kept():
    data = file_of(Image.new("RGB", (40, 30), "red"), "tiff", save_all=True, append_images=[Image.new("L", (99, 99))])
    picture = Picture.from_url(base64.b64encode(data.getvalue()).decode())
    assert picture.file is None and picture.to_url().startswith("data:image/png;base64,")
    assert np.array_equal(Picture.from_url(picture.to_url()).image, picture.image)


def test_a_picture_may_have_as_many_pixels_as_allowed_and_none_more():
    assert open_image(file_of(Image.new("RGB", (20, 10))), PixelBudget(200)).size == (20, 10)
    with pytest.raises(UserError, match="more than 0.0002 megapixels. Make it smaller"):
        open_image(file_of(Image.new("RGB", (67, 3))), PixelBudget(200))


def test_all_pictures_of_a_conversation_have_a_limit_together():
    shown = [open_image(file_of(Image.new("RGB", (20, 10))))]
    budget = PixelBudget(200, shown)
    for _ in range(3):
        open_image(file_of(Image.new("RGB", (10, 20))), budget)
    with pytest.raises(UserError, match="with it, the conversation's pictures have more than 0.0008 megapixels"):
        open_image(bomb(20, 10), budget)


def test_a_video_has_the_limits_of_its_frames_before_they_are_read(tmp_path, monkeypatch):
    import decord

    file = write_video(tmp_path / "clip.mp4", [(0, 0, 9 * n) for n in range(20)])
    assert len(Video(file, frames=4).pictures(PixelBudget(64 * 48))) == 4
    monkeypatch.delattr(decord.VideoReader, "get_batch")
    for frames, pixels, complaint in (
        (4, 64 * 48 - 1, "clip.mp4: the picture has more than 0.003071 megapixels"),
        (5, 64 * 48, "clip.mp4: with it, .* 0.012288 megapixels together"),
    ):
        with pytest.raises(UserError, match=complaint):
            Video(file, frames).pictures(PixelBudget(pixels))


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_known_by_its_header(size):
    with pytest.raises(UserError, match="more than 64 megapixels"):
        open_image(bomb(*size), PixelBudget())


def test_pillows_own_limit_is_reported_where_it_is_the_lower_one():
    with pytest.raises(UserError, match="more than 178.957 megapixels"):
        open_image(bomb(30_000, 30_000), PixelBudget(10**12))


def test_no_other_program_is_asked_to_read_a_picture():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="can't be read as a picture"):
        open_image(io.BytesIO(postscript))


@given(st.binary(max_size=300), st.integers(0, 120), st.sampled_from(["png", "jpeg", "gif", "webp", "bmp", "tiff"]))
def test_any_bytes_are_a_picture_or_an_error_in_words(noise, cut, kind):
    good = file_of(Image.new("RGB", (8, 8), "red"), kind).getvalue()
    try:
        image = open_image(io.BytesIO(good[:cut] + noise), PixelBudget(10**6))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB"
