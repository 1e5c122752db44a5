"""`minigpt4 prepare-data check`: shards as img2dataset leaves them."""

import json

import pytest
import webdataset as wds

from tests.datasets.mixing import jpeg


@pytest.fixture
def shards(tmp_path):
    """Two shards of 6, with img2dataset's files beside; a third one, without."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        with wds.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for i in range(6):
                sample = {"jpg": jpeg(i), "txt": f"A dog, {i}.", "json": json.dumps({"caption": f"A dog, {i}."})}
                tar.write({"__key__": f"{shard:05d}{i:04d}"} | sample)
        if shard < 2:
            causes = {"success": 6, "HTTP Error 404: Not Found": 3, "timed out": shard}
            stats = {"count": 9 + shard, "successes": 6, "status_dict": causes}
            (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
            (folder / f"{shard:05d}.parquet").touch()
    return folder


def test_samples_and_failed_addresses_are_counted(shards, tmp_path, minigpt4):
    code, out, _ = minigpt4("prepare-data", "check", shards, "--page", tmp_path / "pages" / "page.html")
    assert code == 0 and "18 samples that training can use in 3 shards" in out and out.endswith("no problems\n")
    assert "12 of 19 addresses (63.2%)" in out
    assert "6 x HTTP Error 404: Not Found\n" in out and "1 x timed out\n" in out
    page = (tmp_path / "pages" / "page.html").read_text()
    assert page.count("<article>") == 18 and page.count("data:image/jpeg;base64,") == 18 and "a dog, 3" in page


def test_causes_are_those_of_training(shards, minigpt4):
    with wds.TarWriter(str(shards / "00002.tar")) as tar:
        tar.write({"__key__": "a", "jpg": b"<html>", "txt": "x"})
        tar.write({"__key__": "b", "jpg": jpeg(1)[:300], "txt": "x"})
        tar.write({"__key__": "c", "jpg": jpeg(1)})
        tar.write({"__key__": "d", "txt": "x"})
        tar.write({"__key__": "e", "jpg": jpeg(1), "txt": "..."})
    (shards / "00001.tar").write_bytes((shards / "00001.tar").read_bytes()[:3000])
    (shards / "00001_stats.json").unlink()
    code, out, _ = minigpt4("prepare-data", "check", shards)
    assert code == 1
    for cause, name in (
        ("2 x unreadable picture", "00002.tar/a"),
        ("1 x no caption", "00002.tar/c"),
        ("1 x no picture", "00002.tar/d"),
        ("1 x empty caption", "00002.tar/e"),
        ("1 x damaged shard", "00001.tar"),
        ("1 x not finished", "00001.tar"),
    ):
        assert f"{cause}: {shards}/{name}" in out


def test_a_shard_with_fewer_samples_than_were_counted(shards, minigpt4):
    stats = shards / "00000_stats.json"
    stats.write_text(stats.read_text().replace('"successes": 6', '"successes": 7'))
    code, out, _ = minigpt4("prepare-data", "check", shards)
    assert code == 1 and "it holds 6, and its _stats.json says 7" in out
    code, out, _ = minigpt4("prepare-data", "check", shards, "--samples", 2)  # not all were read: nothing to compare
    assert code == 0 and "6 samples" in out
    stats.write_text("[]")
    assert "1 x unreadable _stats.json" in minigpt4("prepare-data", "check", shards)[1]


def test_other_keys(shards, minigpt4):
    code, out, _ = minigpt4("prepare-data", "check", shards, "--caption-keys", "cap")
    assert code == 1 and "18 x no caption" in out
    assert minigpt4("prepare-data", "check", shards, "--caption-keys", "cap", "json:caption")[0] == 0


def test_no_shards(tmp_path, minigpt4):
    code, _, err = minigpt4("prepare-data", "check", tmp_path)
    assert code == 2 and err.startswith("error: SHARDS: ")
    assert f"the folder '{tmp_path}' holds no shards" in err


def test_an_address_that_cannot_be_read(minigpt4):
    code, out, _ = minigpt4("prepare-data", "check", "http://127.0.0.1:9/x.tar")
    assert code == 1 and "           it can't be read: curl ended with exit status 7\n" in out
