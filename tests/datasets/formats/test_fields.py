"""Shards as people have them: where the picture and the caption of a sample may be."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigpt4.common.registry import registry
from minigpt4.config.loading import load_config
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.datasets.loading import Skipped, use


def image(kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(file, kind)
    return file.getvalue()


JPG = image()


def caption_of(sample: dict) -> str | None:
    (turn,) = sample["conversation"].turns
    assert turn.question == sample["conversation"].pictures and sample["conversation"].kind == "caption"
    return turn.answer


def read(folder: Path, files: dict[str, bytes], format_: int = tarfile.PAX_FORMAT, **info) -> list[str]:
    """What a shard of these files gives: captions, or why there is none."""
    with tarfile.open(folder / "0.tar", "w", format=format_) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    images, text = ProcessorConfig("blip2_image_eval", image_size=8), ProcessorConfig("base_instruction")
    info = BuildInfo(valid_storage=str(folder / "0.tar"), **info)
    config = DatasetConfig(info, ProcessorsConfig(images, images), ProcessorsConfig(text, text))
    dataset = registry.get_builder_class("cc_sbu")("cc_sbu", config).build("val")
    samples = [use(name, None, load) for name, load in dataset]
    return [s.reason.replace(str(folder), "") if isinstance(s, Skipped) else caption_of(s) for s in samples]


def test_img2datasets_own_files(tmp_path):
    """Captions in .txt and .json, a name's dots in the folder, and the fields in any order."""
    meta = {"url": "http://x", "caption": "from json", "key": "000000001", "status": "success", "exif": "{}"}
    files = {
        "000000000.jpg": JPG,
        "000000000.txt": b"\xef\xbb\xbfa dog\r\n",
        "000000001.json": json.dumps(meta).encode(),
        "000000001.txt": b"from txt",
        "000000001.jpg": JPG,
        "000000002.jpg": JPG,
        "000000002.json": json.dumps(meta | {"caption": None}).encode(),
        "000000002.txt": b"null in json",
        "cc3m-1.0/part.1/000000003.jpg": JPG,
        "cc3m-1.0/part.1/000000003.txt": "ein Hündchen".encode(),
    }
    assert read(tmp_path, files) == ["a dog", "from json", "null in json", "ein Hündchen"]


def test_other_spellings(tmp_path):
    files = {
        "./a.JPG": JPG,
        "./a.TXT": b"upper case",
        "./._a.jpg": b"of a Mac",
        "./README": b"no sample",
        "./b.Png": image("PNG"),
        "./b.Json": b'{"caption": "png"}',
        "./c.webp": image("WEBP"),
        "./c.txt": b"webp",
        f"./{'long' * 60}.jpeg": JPG,
        f"./{'long' * 60}.txt": b"a long name",
    }
    for format_ in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert read(tmp_path, files, format_) == ["upper case", "png", "webp", "a long name"]


@pytest.mark.parametrize(
    ("files", "keys", "caption"),
    [
        ({"img": JPG, "cap": b"a dog"}, {"image_keys": ["img"], "caption_keys": ["cap"]}, "a dog"),
        ({"in.jpg": JPG, "in.txt": b"a dog"}, {"image_keys": ["In.JPG"], "caption_keys": ["in.TXT"]}, "a dog"),
        ({"jpg": JPG, "json": b'{"text": {"en": "a dog"}}'}, {"caption_keys": ["json:text.en"]}, "a dog"),
        ({"jpg": JPG, "json": b'{"texts": ["a cat", "a dog"]}'}, {"caption_keys": ["json:texts.1"]}, "a dog"),
        ({"jpg": JPG, "json": b'"a dog"'}, {"caption_keys": ["json"]}, "a dog"),
        ({"jpg": JPG, "meta.json": b'{"Alt": "a dog"}'}, {"caption_keys": ["txt", "meta.json:Alt"]}, "a dog"),
        ({"jpg": JPG, "json": b'{"alt": "a dog"}', "txt": b"no"}, {"caption_keys": ["json:alt", "txt"]}, "a dog"),
        ({"jpg": b"?", "png": image("PNG"), "txt": b"a dog"}, {"image_keys": ["png", "jpg"]}, "a dog"),
        ({"jpg": JPG, "json": b"[1, 2]", "txt": b"a dog"}, {}, "a dog"),
        ({"jpg": JPG, "json": b'{"caption": NaN}', "txt": b"a dog"}, {}, "a dog"),
        ({"jpg": JPG, "error": b"a field as any other", "txt": b"a dog"}, {}, "a dog"),
    ],
)  # fmt: skip
def test_fields_that_the_config_names(files, keys, caption, tmp_path):
    assert read(tmp_path, {f"x.{field}": data for field, data in files.items()}, **keys) == [caption]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"img": JPG, "cap": b"a"}, "it holds img, cap; set build_info.image_keys, now [jpg, jpeg, png, webp]"),
        ({"jpg": JPG}, "no caption: it holds jpg; set build_info.caption_keys, now [json:caption, txt]"),
        ({"jpg": JPG, "json": b'{"t": {"en": "a", "n": 3}, "u": "u"}'}, "it holds jpg, json:t.en, json:u; set"),
        ({"jpg": JPG, "json": b'{"caption": ["a", "b"]}'}, "it holds jpg, json:caption.0, json:caption.1; set"),
        ({"jpg": JPG, "json": b'"a"', "txt": b" \n"}, "no caption: it holds jpg, json, txt; set"),
        ({"jpg": JPG, "json": json.dumps([{str(i): "a"} for i in range(99)]).encode()}, "json:8.8, ...; set"),
        ({"jpg": JPG, "json": b'{"caption": "a', "txt": b"a"}, "json is not JSON: Unterminated"),
        ({"jpg": JPG, "json": b"[" * 100000}, "json is not JSON: "),
        ({"jpg": JPG, "json": b"1" * 5000}, "json is not JSON: "),
        ({"jpg": JPG, "txt": b"un petit r\xe9cit"}, "txt is not UTF-8: "),
        ({"md": b"# Shards"}, "no picture: it holds md; set"),
        ({"jpg": b"", "txt": b"a"}, "can't be read as a picture"),
    ],
)  # fmt: skip
def test_what_a_sample_lacks_is_reported_with_what_it_has(files, message, tmp_path):
    (reason,) = read(tmp_path, {f"x.{field}": data for field, data in files.items()})
    assert reason.startswith("/0.tar/x: ") and message in reason


def test_a_name_that_comes_twice_is_reported(tmp_path):
    files = {"x.jpg": JPG, "x.txt": b"a dog", "x.JPG": JPG, "y.jpg": JPG, "y.txt": b"a cat"}
    dog, cat, reason = read(tmp_path, files)
    assert (dog, cat) == ("a dog", "a cat") and reason.startswith("/0.tar: x.JPG: duplicate file name in tar file jpg")


@pytest.mark.slow
def test_keys_in_a_config():
    recipe = "train_configs/minigpt4_tiny_stage1_pretrain.yaml"
    info = (
        load_config(recipe, ["datasets.cc_sbu.build_info.caption_keys=[json:text.en,txt]"])
        .datasets["cc_sbu"]
        .build_info
    )
    assert info.caption_keys == ["json:text.en", "txt"] and info.image_keys == ["jpg", "jpeg", "png", "webp"]
