"""`minigpt4 prepare-data captions`: BLIP's lists to what img2dataset reads."""

import json
import shlex
import sys

import pyarrow.parquet as pq
import pytest

from minigpt4.tools.preparing.captions import write_captions

ROWS = [{"url": f"http://x.org/{i}.jpg?a=1&b=[2]", "caption": f'a "dog", {i}\t\né'} for i in range(7)]
BAD = [{"url": "http://x.org/a.jpg"}, {"url": "", "caption": "x"}, {"url": 3, "caption": "x"}, "x", None]


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "ccs.json").write_text(json.dumps(ROWS[:4] + BAD))
    (tmp_path / "laion.json").write_text(json.dumps(ROWS[4:], indent=2))
    return [tmp_path / "ccs.json", tmp_path / "laion.json"]


def test_all_rows_are_there_in_order_in_files_of_a_size(lists, tmp_path):
    assert write_captions(lists, tmp_path / "urls", rows_per_file=3) == (7, 5)
    files = sorted((tmp_path / "urls").iterdir())
    assert [file.name for file in files] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == ROWS


def test_the_command_names_what_was_written(lists, tmp_path, minigpt4):
    code, out, err = minigpt4("prepare-data", "captions", *lists, "--out", tmp_path / "my urls", "--image-size", 224)
    program, *words = shlex.split(out)
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert code == 0 and program == "img2dataset" and "7 rows" in err and "5 without address or caption" in err
    assert options["--url_list"] == str(tmp_path / "my urls") and options["--image_size"] == "224"
    assert options["--output_format"] == "webdataset" and options["--caption_col"] == "caption"
    assert options["--output_folder"] == str(tmp_path / "my urls_shards")


def test_a_cluster_gets_a_script(lists, tmp_path, minigpt4):
    command = ("prepare-data", "captions", lists[0], "--out", tmp_path / "it's", "--distributor", "pyspark")
    code, out, _ = minigpt4(*command)
    script = out.partition("<<'END'\n")[2].partition("\nEND\n")[0]
    compile(script, "download.py", "exec")
    assert code == 0 and "distributor='pyspark'" in script and "spark-submit" in out


@pytest.mark.parametrize("text", ["", '{"url": "x", "caption": "y"}', "[]", '[{"url": "x", "capt', "no JSON", "[1, 2]"])
def test_a_file_that_is_no_such_list_is_refused_and_nothing_stays(text, tmp_path, minigpt4):
    (tmp_path / "x.json").write_text(text)
    code, _, err = minigpt4("prepare-data", "captions", tmp_path / "x.json", "--out", tmp_path / "urls")
    assert code == 2 and "x.json" in err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["x.json"]


def test_a_folder_with_files_is_not_written_to(lists, tmp_path, minigpt4):
    (tmp_path / "urls").mkdir()
    (tmp_path / "urls" / "mine").touch()
    code, _, err = minigpt4("prepare-data", "captions", *lists, "--out", tmp_path / "urls")
    assert code == 2 and "--out" in err and [path.name for path in (tmp_path / "urls").iterdir()] == ["mine"]


def test_without_the_package_the_cure_is_named(lists, tmp_path, minigpt4, monkeypatch):
    monkeypatch.setitem(sys.modules, "ijson", None)
    code, _, err = minigpt4("prepare-data", "captions", *lists, "--out", tmp_path / "urls")
    assert code == 2 and "pip install 'minigpt4[data]'" in err


def test_the_progress_bar_moves(tmp_path, monkeypatch):
    from minigpt4.tools.preparing import captions

    bars = []

    class Bar(captions.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(captions, "tqdm", Bar)
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    write_captions([tmp_path / "x.json"], tmp_path / "urls")
    assert [bar.n for bar in bars] == [(tmp_path / "x.json").stat().st_size]


def test_the_command_that_follows_is_quoted_for_a_shell(lists, tmp_path, minigpt4):
    shards = tmp_path / "it's shards"
    _, _, err = minigpt4("prepare-data", "captions", *lists, "--out", tmp_path / "urls", "--shards", shards)
    assert shlex.split(err.rpartition("then: ")[2]) == ["minigpt4", "prepare-data", "check", str(shards)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!doctype html><p>Sign in", "is a web page, not the file"),
        (
            '{"url": "x", "caption": "y"}\n{"url": "x", "caption": "y"}\n',
            "is one JSON object or JSON lines, not a JSON list",
        ),
        ("[x]", "invalid char in json text. Download it again"),
    ],
)
def test_what_the_file_is_instead_is_named(text, words, tmp_path, minigpt4):
    (tmp_path / "x.json").write_text(text)
    code, _, err = minigpt4("prepare-data", "captions", tmp_path / "x.json", "--out", tmp_path / "urls")
    assert code == 2 and words in err and ".." not in err.replace("...", "")
