"""Datasets: the real file formats, the split over workers and ranks, and errors that name the file."""

import json
import os
from dataclasses import replace

import pytest
import torch
import webdataset as wds
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.conversation.prompter import IGNORE
from minigpt4.datasets.formats.shards import expand_shards
from minigpt4.datasets.loading import LayOut, build_valid_loader, collate


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (20, 16), (value, 0, 0))


@pytest.fixture
def shards(tmp_path) -> str:
    for shard in range(3):
        with wds.TarWriter(str(tmp_path / f"{shard:05d}.tar")) as tar:
            for i in range(8):
                key = shard * 8 + i
                tar.write({"__key__": f"{key:04d}", "jpg": picture(key), "json": {"caption": f"Picture {key}!"}})
    return str(tmp_path / "{00000..00002}.tar")


@pytest.fixture
def align_folder(tmp_path) -> str:
    (tmp_path / "image").mkdir()
    for i in range(6):
        picture(i).save(tmp_path / "image" / f"{i}.jpg")
    annotations = [{"image_id": str(i), "caption": f"Picture {i}!"} for i in range(6)]
    annotations[0]["instruction"] = "Which number?"
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return str(tmp_path)


def build(name: str, storage: str, split: str = "train", valid: str | None = None):
    images = ProcessorConfig("blip2_image_eval", image_size=28)
    text = ProcessorConfig("blip_caption")
    config = DatasetConfig(
        build_info=BuildInfo(storage, valid),
        vis_processor=ProcessorsConfig(images, images),
        text_processor=ProcessorsConfig(text, text),
    )
    return registry.get_builder_class(name)(name, config).build(split)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_validation_shards_are_passed_once_by_all_workers_and_ranks_together(shards, workers, ranks, monkeypatch):
    seen = []
    for rank in range(ranks):
        monkeypatch.setitem(os.environ, "RANK", str(rank))
        monkeypatch.setitem(os.environ, "WORLD_SIZE", str(ranks))
        dataset = build("laion", "unused", split="val", valid=shards)
        for batch in build_valid_loader(dataset, 5, workers):
            seen += [conversation.turns[0].answer for conversation in batch["conversation"]]
    assert sorted(seen) == sorted(f"picture {i}" for i in range(24))


def test_shard_names(shards, tmp_path):
    expected = [str(tmp_path / f"0000{i}.tar") for i in range(3)]
    for storage in (shards, str(tmp_path), str(tmp_path / "*.tar")):
        assert expand_shards("k", storage) == expected
    assert expand_shards("k", "pipe:cat x.tar") == ["pipe:cat x.tar"]
    with pytest.raises(UserError, match="k: '.*00003.tar' does not exist \\(1 of 4 shards\\)"):
        expand_shards("k", str(tmp_path / "{00000..00003}.tar"))


def test_s3_is_left_to_its_own_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"k: 's3://b/0.tar': nothing here opens s3://. Install .* pipe:COMMAND"):
        expand_shards("k", "s3://b/{0..1}.tar")
    with pytest.raises(UserError, match="hdfs://. Name a folder"):
        expand_shards("k", "hdfs://b/0.tar")
    (tmp_path / "aws").touch()
    (tmp_path / "aws").chmod(0o755)
    assert expand_shards("k", "s3://b/{0..1}.tar") == ["pipe:aws s3 cp s3://b/0.tar -", "pipe:aws s3 cp s3://b/1.tar -"]


def test_align_folder(align_folder):
    dataset = build("cc_sbu_align", align_folder)
    assert len(dataset) == 6
    asked, captioned = (dataset[i]["conversation"] for i in (0, 1))
    assert asked.turns[0].answer == "Picture 0!"  # descriptions keep case and punctuation
    assert asked.turns[0].question == [*asked.pictures, " ", "Which number?"] and asked.kind == "instruction"
    assert captioned.turns[0].question == captioned.pictures and captioned.kind == "caption"
    assert len(asked.pictures) == len(captioned.pictures) == 1
    assert collate([dataset[0], dataset[1]])["image_id"] == ["0", "1"]


def test_batches_are_padded_behind_what_is_learned(align_folder, parity_prompter):
    own = replace(parity_prompter, prompts=["<ImageHere> Describe it at length.", "<ImageHere>"])
    lay_out, samples = LayOut(own, training=False), [build("cc_sbu_align", align_folder)[i] for i in (0, 1)]
    batch = collate([lay_out(sample) for sample in samples])
    assert batch.keys() == {"ids", "mask", "labels", "pictures", "image_id"}
    for row, sample in enumerate(samples):
        ids, learned = map(torch.tensor, zip(*own.example(sample["conversation"]), strict=True))
        assert torch.equal(batch["ids"][row, : len(ids)], ids)
        assert torch.equal(batch["labels"][row, : len(ids)], ids.masked_fill(~learned, IGNORE))
        assert (batch["labels"][row, len(ids) :] == IGNORE).all()
        assert batch["mask"][row].tolist() == [1] * len(ids) + [0] * (batch["ids"].shape[1] - len(ids))
    assert torch.equal(batch["pictures"], torch.cat([s["conversation"].pictures[0].unsqueeze(0) for s in samples]))
    assert batch["image_id"] == ["0", "1"]


def test_align_folder_errors(align_folder, tmp_path):
    with pytest.raises(UserError, match="datasets.cc_sbu_align.build_info.storage: '/no/where' holds no filter_cap"):
        build("cc_sbu_align", "/no/where")
    with pytest.raises(UserError, match="datasets.cc_sbu_align.build_info.valid_storage: not set"):
        build("cc_sbu_align", align_folder, split="val")
    (tmp_path / "image" / "3.jpg").unlink()
    with pytest.raises(UserError, match="image/3.jpg can't be read as a picture"):
        build("cc_sbu_align", align_folder)[3]
    for text in (
        "[]",
        "{",
        '{"annotations": [{"caption": "x"}]}',
        '{"annotations": []}',
    ):
        (tmp_path / "filter_cap.json").write_text(text)
        with pytest.raises(UserError, match="filter_cap.json"):
            build("cc_sbu_align", align_folder)


@pytest.mark.parametrize("annotation", [{}, {"caption": None}, {"caption": " "}])
def test_a_missing_caption_is_named(annotation, align_folder, tmp_path):
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": [{"image_id": "0"} | annotation]}))
    with pytest.raises(UserError, match="^0: no caption"):
        build("cc_sbu_align", align_folder)[0]


def test_without_any_image_the_folder_is_wrong(align_folder, tmp_path):
    (tmp_path / "image").rename(tmp_path / "images")
    with pytest.raises(UserError, match="none of its 6 images is in"):
        build("cc_sbu_align", align_folder)


def test_a_damaged_picture_is_named(align_folder, tmp_path):
    (tmp_path / "image" / "2.jpg").write_bytes(b"garbage")
    with pytest.raises(UserError, match="2.jpg can't be read as a picture"):
        build("cc_sbu_align", align_folder)[2]
