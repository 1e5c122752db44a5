"""Building a model never touches the network: any attempt to connect would be an error here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "minigpt4" / "assets" / "tiny"
BUILD = """
import socket, sys

def refuse(*args, **kwargs):
    print("CONNECTS", args)
    raise OSError("blocked")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import minigpt4
from PIL import Image
from minigpt4.common.errors import UserError

try:
    chat = minigpt4.Chat(minigpt4.load_model(options=sys.argv[1:]))
    print("ANSWER", chat.answer([Image.open(EXAMPLE), "how many digits are there?"]))
except UserError as error:
    print("REFUSED", error)
"""


@pytest.fixture
def build(tmp_path):
    """Builds a model in a process of its own, whose hub is not said to be offline, and whose caches are these."""
    shutil.copytree(TINY / "llm", snapshot := tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40))
    (tmp_path / "hub" / "models--owner--name" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--name" / "refs" / "main").write_text(snapshot.name)
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    code = BUILD.replace("EXAMPLE", repr(str(TINY / "examples" / "scene1.jpg")))

    def run(*options) -> str:
        command = [sys.executable, "-c", code, *options, f"env.cache_root={tmp_path}"]
        own = environment | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path)}
        return subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_a_hub_id_and_a_url_that_were_fetched_are_used(build, tmp_path, quantization):
    (tmp_path / "files").mkdir()
    shutil.copy(TINY / "eva_vit.safetensors", tmp_path / "files")
    url = "https://example.org/files/eva_vit.safetensors"
    output = build("model.llama_model=owner/name", f"model.vit_model={url}", f"model.quantization={quantization}")
    assert "ANSWER" in output and "CONNECTS" not in output


@pytest.mark.slow
def test_what_was_not_fetched_is_reported(build):
    output = build("model.llama_model=Qwen/Qwen-7B-Chat", "model.vit_model=eva_clip_g", "model.trust_remote_code=True")
    assert "minigpt4 fetch eva_vit_g --download" in output and "minigpt4 fetch qwen-7b-chat --download" in output
    assert "CONNECTS" not in output
