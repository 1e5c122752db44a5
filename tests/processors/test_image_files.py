"""Picture files to tensors: exactly as Pillow and torchvision do, or, of large JPEGs for training, the same region."""

import io
import json

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from minigpt4.common.errors import UserError
from minigpt4.config.schema import BuildInfo
from minigpt4.datasets.formats.align import CCSBUAlignDataset
from minigpt4.datasets.formats.instruction import InstructionDataset
from minigpt4.datasets.formats.shards import ShardedCaptionDataset
from minigpt4.processors import image as image_module
from minigpt4.processors.image import CLIP_MEAN, CLIP_STD, Blip2ImageEvalProcessor, Blip2ImageTrainProcessor
from minigpt4.processors.picture_file import open_image

SIDE = 32
EVAL, TRAIN = Blip2ImageEvalProcessor(SIDE), Blip2ImageTrainProcessor(SIDE)
BICUBIC = InterpolationMode.BICUBIC
NORMALISED = [transforms.ToTensor(), transforms.Normalize(CLIP_MEAN, CLIP_STD)]
THEIRS = {
    EVAL: transforms.Compose([transforms.Resize((SIDE, SIDE), BICUBIC), *NORMALISED]),
    TRAIN: transforms.Compose(
        [transforms.RandomResizedCrop(SIDE, scale=(0.5, 1.0), interpolation=BICUBIC), *NORMALISED]
    ),
}


def smooth(width: int, height: int) -> Image.Image:
    """No two regions of it look the same."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    channels = [255 * x, 255 * y, 127 + 100 * np.sin(5 * (x + y))]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def stored(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file


def drawn(seed: int, read, *args) -> torch.Tensor:
    """Of a seed, and what the generator gives next."""
    torch.manual_seed(seed)
    pixels = read(*args)
    return torch.cat([pixels.flatten(), torch.rand(1)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 99), st.sampled_from([EVAL, TRAIN]))
def test_processors_give_torchvisions_bits(width, height, seed, processor):
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    assert torch.equal(drawn(seed, processor, noise), drawn(seed, THEIRS[processor], noise))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2 * SIDE - 1), st.integers(1, 300), st.integers(0, 99), st.sampled_from([EVAL, TRAIN]))
def test_a_jpeg_that_must_not_be_reduced_gives_the_bits_of_the_whole(width, height, seed, processor):
    file = stored(smooth(width, height), "JPEG")
    whole = drawn(seed, THEIRS[processor], Image.open(file))
    assert torch.equal(drawn(seed, processor.load, file, True), whole)
    assert torch.equal(drawn(seed, processor.load, file, False), whole)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((63, 999), (63, 999)),
        ((64, 99), (32, 50)),
        ((127, 301), (64, 151)),
        ((128, 300), (32, 75)),
        ((999, 999), (125, 125)),
    ],
)
def test_training_decodes_no_more_of_a_jpeg_than_it_needs(size, decoded, monkeypatch):
    seen = sizes_decoded(monkeypatch)
    file = stored(smooth(*size), "JPEG")
    Blip2ImageTrainProcessor(SIDE, random_resized_crop=False).load(file, True)
    EVAL.load(file, False)
    assert seen == [decoded, size]


def test_the_crop_decides_how_much_is_decoded(monkeypatch):
    seen = sizes_decoded(monkeypatch)
    file = stored(smooth(146, 146), "JPEG")
    for seed in range(30):
        torch.manual_seed(seed)
        TRAIN.load(file, True)
        torch.manual_seed(seed)
        left, top, right, bottom = TRAIN.box(Image.open(file))
        scale = 4 if min(right - left, bottom - top) >= 4 * SIDE else 2
        assert seen.pop() == (-(-146 // scale),) * 2


def sizes_decoded(monkeypatch) -> list[tuple[int, int]]:
    seen, rgb = [], image_module.rgb

    def note(image: Image.Image) -> Image.Image:
        seen.append(rgb(image).size)
        return rgb(image)

    monkeypatch.setattr(image_module, "rgb", note)
    return seen


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(448, 1500), st.integers(448, 1500), st.integers(0, 99))
def test_a_reduced_jpeg_shows_the_same_region(width, height, seed):
    file, processor = stored(smooth(width, height), "JPEG", quality=95), Blip2ImageTrainProcessor()
    reduced, whole = drawn(seed, processor.load, file, True), drawn(seed, processor.load, file, False)
    assert (reduced - whole).abs().mean() < 0.015  # values span about 3.7, so one of 224 columns aside is 0.016


EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by 90 degrees, which the original does not look at either


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"exif": EXIF}),
        ("RGB", "JPEG", {"subsampling": 0}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
    ],
)
def test_all_kinds_of_pictures(mode, kind, options, tmp_path):
    file = tmp_path / "picture"
    file.write_bytes(stored(smooth(320, 200).convert(mode), kind, **options).getvalue())
    with Image.open(file) as image:
        picture = image.convert("RGB")
    assert np.array_equal(np.asarray(open_image(file)), np.asarray(picture))
    assert torch.equal(EVAL.load(file, False), THEIRS[EVAL](picture))
    exact, reduced = EVAL.load(file, False), EVAL.load(file, True)
    assert torch.equal(reduced, exact) == (kind != "JPEG")
    assert (reduced - exact).abs().mean() < 0.02


def test_grey_of_16_bits_is_as_bright_as_that_of_8(tmp_path):
    grey = np.asarray(smooth(40, 40).convert("L"))
    file = tmp_path / "grey.png"
    Image.fromarray(grey.astype(np.uint16) << 8).save(file)
    assert torch.equal(EVAL.load(file, True), EVAL(Image.fromarray(grey).convert("RGB")))
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="float.tiff can't be read as a picture: its brightness has 32 bits"):
        open_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("reduced", [False, True])
def test_what_is_no_picture_is_an_error_in_words(reduced, tmp_path, monkeypatch):
    file = tmp_path / "x.jpg"
    whole = stored(smooth(256, 256), "JPEG").getvalue()
    for content, message in (
        (b"no picture", "it is not one of JPEG, PNG"),
        (whole[: len(whole) * 2 // 3], "truncated"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"x.jpg can't be read as a picture: .*{message}.* Use another"):
            TRAIN.load(file, reduced)
        with pytest.raises(UserError, match=f"^this can't be read as a picture: .*{message}"):
            TRAIN.load(io.BytesIO(content), reduced)
    file.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(UserError, match="x.jpg can't be read as a picture: .*decompression bomb"):
        TRAIN.load(file, reduced)


@pytest.mark.parametrize("kind", ["shards", "align", "instruction"])
def test_only_training_reads_jpegs_at_reduced_size(kind, tmp_path):
    picture = stored(smooth(128, 128), "JPEG").getvalue()
    common = {"key": "k", "info": BuildInfo(), "vis_processor": EVAL, "text_processor": str}
    if kind == "shards":
        with wds.TarWriter(str(tmp_path / "0.tar")) as tar:
            tar.write({"__key__": "0", "jpg": picture, "json": json.dumps({"caption": "x"})})
    else:
        (tmp_path / "image").mkdir()
        (tmp_path / "image" / "0.jpg").write_bytes(picture)
        annotations = {"annotations": [{"image_id": "0", "caption": "x"}]}
        (tmp_path / "filter_cap.json").write_text(json.dumps(annotations))
        (tmp_path / "own.json").write_text(json.dumps([{"image": "0.jpg", "instruction": "x", "output": "y"}]))

    def sample_of(training: bool) -> dict:
        if kind == "instruction":
            own = str(tmp_path / "own.json")
            return InstructionDataset(**common, storage=own, reduced=training)[0]
        if kind == "align":
            return CCSBUAlignDataset(**common, storage=str(tmp_path), reduced=training)[0]
        [(_, sample)] = ShardedCaptionDataset(**common, storage=str(tmp_path), reduced=training)
        return sample()

    def read(training: bool) -> torch.Tensor:
        (shown,) = sample_of(training)["conversation"].pictures
        return shown

    assert torch.equal(read(False), EVAL.load(io.BytesIO(picture), False))
    assert torch.equal(read(True), EVAL.load(io.BytesIO(picture), True))
    assert not torch.equal(read(True), read(False))
