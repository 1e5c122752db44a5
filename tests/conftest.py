"""Fixtures: the golden data of the original, and models of its sizes built through the product's own loading code.

The golden set lies in tests/fixtures/parity, or where MINIGPT4_PARITY says: another set has other sizes and cases.
"""

import json
import logging
import os
import shutil
import sys
from collections import Counter
from copy import copy
from dataclasses import fields, replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before it is imported: no test asks the network

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.cli import main
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig, QformerConfig, VitConfig
from minigpt4.conversation.prompter import Prompter
from minigpt4.inference.engine import Engine
from minigpt4.inference.loading import load_prompter
from minigpt4.models.minigpt4 import MiniGPT4

PARITY = Path(os.environ.get("MINIGPT4_PARITY") or Path(__file__).parent / "fixtures" / "parity").absolute()
os.fsync = lambda _: None  # no test cuts the power, and a checkpoint would wait half a second for the disk
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


DIFFERENCES: dict[tuple[str, str], tuple[float, float]] = {}  # (golden file, what): largest difference, tolerance


def assert_recorded(file: str, what: str, ours: Tensor, recorded: Tensor, atol: float) -> None:
    """Compares with golden data; the largest differences of a run are printed at its end."""
    difference = (ours.detach() - recorded).abs().max().item()
    seen, _ = DIFFERENCES.get((file, what), (0.0, 0.0))
    DIFFERENCES[file, what] = (max(seen, difference), atol)
    torch.testing.assert_close(ours.detach(), recorded, atol=atol, rtol=0)


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: a test that waits for a process, a page or the disk leaves one idle."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    """The longest files first, so that none is left for one worker at the end (with --no-loadscope-reorder)."""
    weights = {"distributed": 20, "browser": 5, "slow": 1}
    work = Counter[Path]()
    for item in items:
        work[item.path] += max((weights[mark.name] for mark in item.iter_markers() if mark.name in weights), default=0)
    items.sort(key=lambda item: -work[item.path])


def pytest_terminal_summary(terminalreporter):
    if DIFFERENCES:
        terminalreporter.section("largest differences from the original")
        for (file, what), (difference, atol) in sorted(DIFFERENCES.items()):
            terminalreporter.line(f"{file:14} {what:32} {difference:8.1e} (tolerance {atol:.0e})")


def golden(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


def golden_json(name: str) -> dict:
    return json.loads((PARITY / f"{name}.json").read_text())


def _llm_folder(folder: Path, flavour: str) -> Path:
    """A Hugging Face folder with the golden LLaMA and tokenizer."""
    sizes = golden_json("config")["llama_configs"][flavour]
    known = LlamaConfig().to_dict()
    llm = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in sizes.items() if k in known and k != "dtype"}))
    weights = {k: v.float() for k, v in load_file(PARITY / "weights" / "llama.safetensors").items()}
    llm.load_state_dict({k: v for k, v in weights.items() if not k.endswith("inv_freq")})
    llm.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((PARITY / "tokenizer" / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="session")
def parity_llm(tmp_path_factory) -> Path:
    return _llm_folder(tmp_path_factory.mktemp("vicuna0"), "vicuna0")


@pytest.fixture(autouse=True)
def usual_log():
    """Commands that ran before in this process may have set another level, and write to a stream that is closed."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture
def minigpt4(monkeypatch, capsys):
    """Runs the command `minigpt4`; returns exit status, stdout and stderr."""

    def run(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minigpt4", *map(str, args)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def browser():
    """A chromium that is installed."""
    from playwright.sync_api import sync_playwright  # slow to import

    with sync_playwright() as playwright:
        installed = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
        chromium = next(filter(None, installed), playwright.chromium.executable_path)
        if not Path(chromium).exists():
            missing = pytest.fail if os.environ.get("CI") else pytest.skip
            missing("no chromium to test the page in. Install it: apt install chromium (or: playwright install)")
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


SIZES = golden_json("config")["spec"]
SIZE, OTHER_SIZE, QUERIES = SIZES["img"], SIZES["img_alt"], SIZES["qf"]["nq"]
VIT = VitConfig(**{field.name: golden_json("1_vit")["config"][field.name] for field in fields(VitConfig)})
QFORMER = QformerConfig(
    **{key: size for key, size in SIZES["qf"].items() if key != "nq"},
    cross_attention_frequency=golden_json("2_qformer")["config"]["cross_attention_freq"],
)


@pytest.fixture(scope="session")
def parity_config(parity_llm) -> ModelConfig:
    return ModelConfig(
        image_size=SIZE,
        vit=VIT,
        vit_precision="fp32",
        vit_model=str(PARITY / "weights" / "eva_vit.safetensors"),
        qformer=QFORMER,
        num_query_token=QUERIES,
        q_former_model=str(PARITY / "weights" / "blip2_qformer.safetensors"),
        llama_model=str(parity_llm),
        ckpt=str(PARITY / "weights" / "ckpt_vicuna0.safetensors"),
    )


def parity_processor(image: Image.Image) -> Tensor:
    """Pixels of the size that the parity models see."""
    return torch.from_numpy(np.array(image.convert("RGB").resize((SIZE, SIZE)))).permute(2, 0, 1) / 255


def engine_of(config: ModelConfig) -> Engine:
    """A model built by the product's own loading code, in an engine."""
    model = registry.get_model_class(config.arch).from_config(Config(model=config)).eval()
    return Engine(model, load_prompter(config), parity_processor)


@pytest.fixture(scope="session")
def _parity_engine(parity_config) -> Engine:
    return engine_of(parity_config)


@pytest.fixture
def parity_engine(_parity_engine) -> Engine:
    """Of the Vicuna v0 flavour. A test may replace its prompter; the model is shared."""
    return copy(_parity_engine)


@pytest.fixture
def parity_model(_parity_engine) -> MiniGPT4:
    return _parity_engine.model


@pytest.fixture
def parity_prompter(_parity_engine) -> Prompter:
    return _parity_engine.prompter


@pytest.fixture(scope="session")
def _parity_engines(_parity_engine, parity_config, tmp_path_factory) -> dict[str, Engine]:
    llama2 = replace(
        parity_config,
        has_qformer=False,
        llama_model=str(_llm_folder(tmp_path_factory.mktemp("llama2"), "llama2")),
        ckpt=str(PARITY / "weights" / "ckpt_llama2.safetensors"),
        conversation="llama2",
    )
    recorded = golden_json("3_v2")["model_cfg"]
    same = ("image_size", "lora_r", "lora_alpha", "prompt_template", "max_txt_len", "end_sym")
    v2 = replace(
        llama2,
        arch="minigpt_v2",
        lora_dropout=0.0,
        ckpt=str(PARITY / "weights" / "ckpt_v2.safetensors"),
        conversation="minigpt_v2",
        **{key: recorded[key] for key in same},
    )
    return {"vicuna0": _parity_engine, "llama2": engine_of(llama2), "v2": engine_of(v2)}


@pytest.fixture
def parity_engines(_parity_engines) -> dict[str, Engine]:
    """The three flavours, by the names of their golden files; see `parity_engine`."""
    return {flavour: copy(engine) for flavour, engine in _parity_engines.items()}
