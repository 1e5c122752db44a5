"""`minigpt4 doctor`: what is wrong is red, with what to type; what is in order is green."""

import hashlib
import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import minigpt4 as package
from minigpt4.models.published import Weights
from minigpt4.tools.doctor import checksums
from minigpt4.tools.doctor.checksums import checksum_lines

TINY = Path(package.__file__).parent / "assets" / "tiny"


@pytest.fixture
def doctor(minigpt4, monkeypatch):
    """The command on the bundled config; what it prints as JSON, after the exit status. It measures nothing."""
    from minigpt4.tools.doctor.devices import Device

    monkeypatch.setattr("minigpt4.tools.doctor.devices.this_device", lambda _: Device("CPU", True, 20e9, 1e10, 1e11))

    def run(*options, words=()):
        code, out, error = minigpt4(
            "doctor", "--json", *words, "--cfg-path", "minigpt4_tiny_eval", "--options", "run.device=cpu", *options
        )
        assert code in (0, 1), error
        found = json.loads(out)
        assert found["healthy"] == (code == 0)
        return found

    return run


def red(found: dict) -> list[str]:
    return [line["text"] for lines in found["checks"].values() for line in lines if line["state"] == "red"]


@pytest.fixture
def llm(tmp_path):
    """A copy of the tiny LLM, to spoil."""
    return shutil.copytree(TINY / "llm", tmp_path / "llm")


@pytest.mark.slow
def test_the_bundled_model_is_in_order(doctor):
    found = doctor()
    assert red(found) == []
    checked = " ".join(line["text"] for line in found["checks"]["The config"])
    for word in (
        "model.vit_model",
        "model.q_former_model",
        "model.ckpt",
        "tokenizer",
        "128 -> 128",
        "LLM weights",
    ):
        assert word in checked
    assert [need["phase"] for need in found["estimate"]] == ["load", "chat", "train"]
    assert all(need["fits"] and 1e8 < need["memory"] < 4e9 for need in found["estimate"])


def test_the_machine_alone(minigpt4, monkeypatch):
    def without_pyarrow(package: str) -> str:
        if package == "pyarrow":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr("minigpt4.tools.doctor.environment.version", without_pyarrow)
    code, out, _ = minigpt4("doctor")
    assert code == 0 and "pip install 'minigpt4[parquet]'" in out and "The config" not in out
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    code, out, _ = minigpt4("doctor")
    assert code == 1 and "RED  env.cache_root: 0.0 GB free" in out and "Fix the RED lines above." in out


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 499723\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer"),
        (b"<!doctype html><html></html>", "is a web page"),
        ((TINY / "eva_vit.safetensors").read_bytes()[:-1000], "is truncated"),
    ],
)
def test_a_file_that_is_something_else(content, message, doctor, tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(content)
    (line,) = red(doctor(f"model.vit_model={tmp_path}/vit.safetensors"))
    assert line.startswith("model.vit_model: ") and message in line


@pytest.mark.slow
def test_a_pointer_in_place_of_the_llms_weights(doctor, llm):
    (llm / "model.safetensors").write_bytes(POINTER)
    found = doctor(f"model.llama_model={llm}")
    (line,) = red(found)
    assert "is a Git LFS pointer" in line and found["estimate"]


@pytest.mark.slow
def test_a_delta_that_was_not_applied(doctor, llm):
    weights = load_file(llm / "model.safetensors")
    save_file({name: 1e-3 * w for name, w in weights.items()}, llm / "model.safetensors", {"format": "pt"})
    (line,) = red(doctor(f"model.llama_model={llm}"))
    assert "holds a difference to LLaMA" in line and f"minigpt4 apply-delta --base LLAMA --delta {llm}" in line


@pytest.mark.slow
def test_a_folder_of_metas(doctor, tmp_path):
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(b"x")
    found = doctor(f"model.llama_model={tmp_path}")
    assert f"minigpt4 convert-llama {tmp_path} --out NEW" in red(found)[0]
    assert found["checks"]["Memory and time"][0]["state"] == "off"


@pytest.mark.slow
def test_a_projection_of_another_width_and_a_missing_tokenizer_are_reported_together(doctor, llm, tmp_path):
    (llm / "tokenizer.model").unlink()
    save_file({"llama_proj.weight": torch.ones(5120, 128)}, tmp_path / "13b.safetensors")
    first, second = red(doctor(f"model.llama_model={llm}", f"model.ckpt={tmp_path}/13b.safetensors"))
    assert "no tokenizer in" in first and "Put tokenizer.model" in first
    assert "trained with an LLM of width 5120 (13B)" in second


def published_as(monkeypatch, own: Path, digest: str, **more) -> None:
    row: dict[str, Any] = {"file": own.name, "urls": (f"https://x/{own.name}",), "sha256": {own.name: digest}} | more
    monkeypatch.setattr(checksums, "published_weights", lambda: {"w": Weights("w", **row)})


@pytest.mark.slow
def test_checksums_of_published_files(doctor, tmp_path, monkeypatch):
    file = Path(shutil.copy(TINY / "eva_vit.safetensors", tmp_path / "known.safetensors"))
    published_as(monkeypatch, file, hashlib.sha256(file.read_bytes()).hexdigest())
    options = f"model.vit_model={file}", f"env.cache_root={tmp_path}"
    assert red(doctor(*options)) == []
    published_as(monkeypatch, file, "0" * 64)
    (line,) = red(doctor(*options))
    assert "another sha256" in line and line.endswith("minigpt4 fetch w --download")


@pytest.mark.slow
def test_a_file_of_ones_own_with_a_published_name_is_not_said_to_be_deleted(tmp_path, monkeypatch):
    file = tmp_path / "known.safetensors"
    file.write_bytes(b"own")
    published_as(monkeypatch, file, "0" * 64)
    (line,) = checksum_lines(file, False, "/elsewhere")
    assert line.state == "warn" and "another sha256 than is published for w" in line.text and "elete" not in line.text


@pytest.mark.slow
def test_names_of_parts_are_compared_in_the_hubs_cache_alone(tmp_path, monkeypatch):
    part = tmp_path / "vicuna" / "pytorch_model-00001-of-00002.bin"
    cached = tmp_path / "models--own--vicuna" / "snapshots" / "1" / part.name
    for file in (part, cached):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"own")
    published_as(monkeypatch, part, "0" * 64, hub="own/vicuna", file="", urls=())
    assert checksum_lines(part, True, "") == checksum_lines(part.parent, True, "") == []
    (line,) = checksum_lines(cached.parent, True, "")
    assert line.state == "red" and "Delete it, then: minigpt4 fetch w --download" in line.text


@pytest.mark.slow
def test_what_does_not_fit_is_red_with_what_to_try(doctor, monkeypatch):
    from minigpt4.tools.doctor.devices import Device

    monkeypatch.setattr("minigpt4.tools.doctor.devices.this_device", lambda _: Device("CPU", True, 1e8, 1e10, 1e11))
    lines = red(doctor())
    assert len(lines) == 2 and all("does not fit; try a smaller LLM" in line for line in lines)


@pytest.mark.slow
def test_a_named_device_and_an_unknown_one(doctor, minigpt4):
    found = doctor(words=("--device", "h100", "--count", "8"))
    assert "NVIDIA H100 SXM x 8: 80.0 GB" in found["checks"]["Memory and time"][0]["text"]
    assert "roofline" in found["checks"]["Memory and time"][0]["text"]
    code, _, error = minigpt4("doctor", "--device", "h10")
    assert code == 2 and "Did you mean 'h100'?" in error


def test_a_config_that_can_not_be_read_is_an_error(minigpt4):
    code, _, error = minigpt4("doctor", "--cfg-path", "minigpt4_tinny_eval")
    assert code == 2 and "minigpt4_tiny_eval" in error


@pytest.mark.slow
def test_checksums_are_compared_where_something_else_is_red(doctor, tmp_path, monkeypatch):
    file = Path(shutil.copy(TINY / "eva_vit.safetensors", tmp_path / "known.safetensors"))
    published_as(monkeypatch, file, "0" * 64)
    first, second = red(doctor(f"model.vit_model={file}", "model.ckpt=/no/ckpt", f"env.cache_root={tmp_path}"))
    assert "'/no/ckpt' does not exist" in first and "another sha256" in second


def estimated(minigpt4, *words: str) -> tuple[int, dict]:
    code, out, error = minigpt4("doctor", "--json", *words)
    assert code in (0, 1), error
    return code, json.loads(out)


@pytest.mark.slow
def test_full_sizes_are_estimated_without_any_files(minigpt4):
    code, found = estimated(minigpt4, "--llm", "7b", "--device", "3090")
    load, chat, _ = found["estimate"]
    assert code == 0 and load["fits"] and chat["fits"]
    assert load["memory"] == pytest.approx(9.3e9, rel=0.02)  # ViT-g, and LLaMA-7B in 8 bits
    assert load["seconds"] == pytest.approx(13.5, rel=0.01)  # of its file in fp16
    code, found = estimated(minigpt4, "--llm", "13b", "--device", "3090", "--count", "2", "--options", *IN_HALF)
    assert code == 1
    text = " ".join(line["text"] for line in found["checks"]["Memory and time"])
    assert "load and chat use one of them" in text and "run.strategy=fsdp shares them out" in text
    assert all("try --options model.device_map=auto, which takes" in line for line in red(found))


IN_HALF = ("model.low_resource=False", "model.llm_dtype=fp16", "run.batch_size_train=1")


@pytest.mark.slow
def test_a_device_that_does_not_quantize(minigpt4):
    code, found = estimated(minigpt4, "--llm", "7b", "--device", "910b3")
    (line,) = red(found)
    assert code == 1 and "model.quantization=none model.low_resource=False" in line
    assert found["estimate"][0]["memory"] == pytest.approx(15.9e9, rel=0.02)


@pytest.mark.slow
def test_the_config_of_another_machine(minigpt4):
    words = ("--cfg-path", "minigpt4_tiny_eval", "--options", "run.device=npu")
    assert "run.device" in " ".join(red(estimated(minigpt4, *words)[1]))
    code, found = estimated(minigpt4, *words, "--device", "3090")
    assert code == 0 and red(found) == []


@pytest.mark.slow
def test_a_checkpoint_folder(doctor, minigpt4, tmp_path):
    from minigpt4.config.loading import load_config, save_config

    folder = tmp_path / "checkpoint_0"
    folder.mkdir()
    save_config(load_config("minigpt4_tiny_eval", ["run.device=cpu"]), folder / "config.yaml")
    shutil.copy(TINY / "projection.safetensors", folder / "model.safetensors")
    code, found = estimated(minigpt4, str(folder), "--options", "run.device=cpu")
    assert code == 0 and any(f"model.ckpt: {folder}" in line["text"] for line in found["checks"]["The config"])
    save_file({"llama_proj.weight": torch.ones(128, 128)}, folder / "model.safetensors")
    _, found = estimated(minigpt4, str(folder), "--options", "run.device=cpu")
    assert "missing ['llama_proj.bias']" in red(found)[0]


@pytest.mark.slow
def test_the_folder_above_metas(doctor, tmp_path):
    (tmp_path / "7B").mkdir()
    (tmp_path / "7B" / "params.json").write_text("{}")
    assert f"minigpt4 convert-llama {tmp_path}/7B --out NEW" in red(doctor(f"model.llama_model={tmp_path}"))[0]


@pytest.mark.slow
def test_an_onnx_tower_is_estimated(doctor, tmp_path):
    from minigpt4.config.loading import load_config
    from minigpt4.models.image_side import load_vision
    from minigpt4.models.onnx_export import export_onnx

    file = tmp_path / "tower.onnx"
    export_onnx(load_vision(load_config("minigpt4_tiny_eval", [])).requires_grad_(False), None, file)
    options = ["model.vision.name=onnx", f"model.vision.model={file}"]
    found = doctor(*options, words=("--device", "h100"))
    assert red(found) == [] and found["estimate"][0]["parts"]["vision"] == file.stat().st_size


@pytest.mark.slow
def test_what_has_no_published_sha256_and_what_is_suspicious_is_said(doctor, monkeypatch):
    monkeypatch.setattr("minigpt4.models.preflight.suspicious_template", lambda *_: ["perhaps wrong"])
    lines = doctor()["checks"]["The config"]
    assert {"state": "warn", "text": "perhaps wrong"} in lines
    assert any(line["text"].startswith("sha256 not compared, as none is published: ") for line in lines)


def test_a_count_without_a_device_is_refused(minigpt4):
    code, _, error = minigpt4("doctor", "--llm", "13b", "--count", "2")
    assert code == 2 and "--count: it counts devices of the kind that --device names. Set --device too." in error


def test_the_summary_says_that_training_does_not_fit():
    from minigpt4.tools.doctor.command import Page, summary

    train: dict[str, Any] = {"phase": "train", "fits": True}
    assert summary(Page({}, [train])) == "All is in order."
    assert summary(Page({}, [train | {"fits": False}])) == "All is in order for a chat; training does not fit."
