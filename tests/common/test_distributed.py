"""The device of a run: chosen in one place, refused in one line."""

import inspect
from pathlib import Path

import pytest
import torch

from minigpt4.common import distributed
from minigpt4.common.distributed import pick_device
from minigpt4.common.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be a machine with two accelerators of a kind, or none."""

    def make(kind: str | None) -> None:
        device = kind and torch.device(kind)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(kind))
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)

    return make


@pytest.mark.parametrize(
    ("kind", "name", "local_rank", "device"),
    [
        (None, "auto", "0", "cpu"),
        ("cuda", "auto", "0", "cuda:0"),
        ("cuda", "auto", "1", "cuda:1"),
        ("cuda", "cuda", "1", "cuda:1"),
        ("cuda", "cuda:1", "0", "cuda:1"),
        ("cuda", "cpu", "1", "cpu"),
        ("mps", "auto", "0", "mps:0"),
        ("mps", "mps", "0", "mps:0"),
    ],
)
def test_devices(kind, name, local_rank, device, machine, monkeypatch):
    machine(kind)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (None, "cuda", "'cuda' is not available on this machine. Set run.device=auto"),
        ("cuda", "mps", "'mps' is not available"),
        ("cuda", "cuda:2", "needs 3 devices, this machine has 2"),
        (None, "gpu", "'gpu' is not a device. Set run.device=auto, cpu, cuda, cuda:N, mps or npu"),
        (None, "npu", "'npu' needs torch_npu. Install the one for your torch: pip install torch-npu"),
        (None, "npu:1", "'npu:1' needs torch_npu"),
    ],
)
def test_devices_that_are_not_there(kind, name, message, machine):
    machine(kind)
    with pytest.raises(UserError, match=f"run.device: .*{message}") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_nothing_else_names_cuda():
    files = [*ROOT.glob("*.py"), *(ROOT / "minigpt4").rglob("*.py")]
    sources = {file: file.read_text().replace(inspect.getsource(pick_device), "") for file in files}
    assert len(files) > 30 and [file.name for file, text in sources.items() if "cuda" in text.lower()] == []


def test_more_processes_than_devices_fail_on_rank_0_too(machine, monkeypatch):
    machine("cuda")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="run.device: cuda needs 3 devices, this machine has 2"):
        pick_device("auto")


def test_one_process_is_its_own_world():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather([1, 2]) == [1, 2]
    assert distributed.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
