"""Devices are found by name, and refused in words on every rank at once."""

import pytest
import torch

from minigpt4.common import dist_utils
from minigpt4.common.errors import UserError


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with one CUDA device, as far as torch.accelerator says."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)


def test_cpu_and_auto_without_an_accelerator():
    assert dist_utils.pick_device("cpu") == torch.device("cpu")
    if not torch.accelerator.is_available():
        assert dist_utils.pick_device("auto") == torch.device("cpu")


def test_auto_takes_the_accelerator_of_this_rank(one_gpu):
    assert dist_utils.pick_device("auto") == torch.device("cuda", 0)


def test_more_processes_than_devices_fail_on_rank_0_too(one_gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run.device: cuda needs 2 devices, this machine has 1"):
        dist_utils.pick_device("auto")


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "'gpu' is no device"), ("xpu", "'xpu' is not available"), ("cuda:3", "needs 4 devices")],
)
def test_wrong_devices_are_named(name, message, one_gpu):
    with pytest.raises(UserError, match=message):
        dist_utils.pick_device(name)


def test_one_process_is_its_own_world():
    assert (dist_utils.rank(), dist_utils.world_size(), dist_utils.is_main()) == (0, 1, True)
    assert dist_utils.all_gather([1, 2]) == [1, 2]
    assert dist_utils.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
