import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from minigpt4.tiny.data import write_all
from minigpt4.tiny.text import DETAIL_REQUESTS, QUESTION_TYPES


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_data_sets(tmp_path: Path) -> None:
    write_all(tmp_path / "a", seed=0, scale=0.01)

    shards = sorted(str(path) for path in (tmp_path / "a" / "stage1").glob("*.tar"))
    assert [Path(shard).name for shard in shards] == [f"{i:05d}.tar" for i in range(8)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 30
    assert Image.open(io.BytesIO(samples[0]["jpg"])).size == (112, 112)
    assert set(json.loads(samples[0]["json"])) == {"caption"}

    annotations = json.loads((tmp_path / "a/stage2/filter_cap.json").read_text())["annotations"]
    assert len(annotations) == 10 * 9
    assert sum("instruction" not in entry for entry in annotations) == 10
    for entry in annotations:
        assert (tmp_path / "a/stage2/image" / f"{entry['image_id']}.jpg").exists()
        assert entry.get("instruction") not in DETAIL_REQUESTS

    records = json.loads((tmp_path / "a/benchmark/benchmark.json").read_text())
    assert [record["question_type"] for record in records] == 5 * list(QUESTION_TYPES)
    assert set(records[0]) == {"image", "question", "answer", "question_type"}
    assert (tmp_path / "a/benchmark/image" / records[-1]["image"]).exists()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_all(tmp_path / name, seed=seed, scale=0.003)
    assert all_files(tmp_path / "a") == all_files(tmp_path / "b") != all_files(tmp_path / "c")
