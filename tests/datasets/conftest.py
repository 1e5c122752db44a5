"""Fixtures: data of mixtures."""

import json
from pathlib import Path

import pytest
import webdataset as wds

from minigpt4.datasets.formats import shards as shards_module
from tests.datasets.mixing import jpeg


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """5 shards of 7 samples, and an align folder of 20."""
    path = tmp_path_factory.mktemp("data")
    (path / "shards").mkdir()
    for shard in range(5):
        with wds.TarWriter(str(path / "shards" / f"{shard}.tar")) as tar:
            for i in range(shard * 7, shard * 7 + 7):
                tar.write({"__key__": f"{i:03d}", "jpg": jpeg(i), "json": json.dumps({"caption": f"shard {i}"})})
    (path / "image").mkdir()
    for i in range(20):
        (path / "image" / f"{i}.jpg").write_bytes(jpeg(100 + i))
    annotations = [{"image_id": str(i), "caption": f"align {i}"} for i in range(20)]
    (path / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(shards_module, "SHUFFLED_TOGETHER", 6)
