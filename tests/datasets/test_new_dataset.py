"""The data set that docs/extend.md shows is one Python file and one YAML file, put into the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image

from minigpt4.common.paths import PACKAGE

ROOT = Path(__file__).parents[2]
READ = """
from minigpt4.common.registry import registry
from minigpt4.config.loading import load_config
from minigpt4.datasets.loading import build_valid_loader

config = load_config("run.yaml")
dataset = registry.get_builder_class("my_captions")("my_captions", config.datasets["my_captions"]).build("train")
print(next(iter(build_valid_loader(dataset, 1, 0)))["conversation"][0].turns[0].answer)
"""


@pytest.mark.slow
def test_a_data_set_is_one_file_and_one_yaml(tmp_path):
    text = (ROOT / "docs" / "extend.md").read_text().partition("## A data set")[2].partition("\n## ")[0]
    code, yaml = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml"))
    package = tmp_path / "minigpt4"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "datasets" / "builders" / "my_captions.py").write_text(code)
    defaults = package / "config" / "defaults" / "datasets" / "my_captions"
    defaults.mkdir()
    (defaults / "defaults.yaml").write_text(yaml.replace("/data/my_captions/{00000..00099}", f"{tmp_path}/{{0..0}}"))
    with wds.TarWriter(str(tmp_path / "0.tar")) as tar:
        tar.write({"__key__": "0", "jpg": Image.new("RGB", (20, 16)), "json": {"text": {"en": "A red door"}}})
    (tmp_path / "run.yaml").write_text("datasets: {my_captions: {}}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().lower() == "a red door", done.stderr
