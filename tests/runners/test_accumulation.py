"""Accumulated batches exchange their gradients once, with the last of a group."""

from pathlib import Path

import pytest
import torch.distributed as dist

from minigpt4.common.distributed import rank
from tests.runners.toy import on_ranks, toy_runner

pytestmark = pytest.mark.distributed


def count_exchanges(folder: Path, strategy: str, accumulated: int) -> None:
    """Trains 8 batches, and writes how often a gradient crossed the ranks."""
    runner = toy_runner(folder, max_epoch=1, accum_grad_iters=accumulated, strategy=strategy)
    found = []
    if strategy == "ddp":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        def hook(state, bucket):
            found.append(bucket.gradients())
            return allreduce_hook(state, bucket)

        runner.strategy.wrapped.register_comm_hook(None, hook)
    else:
        name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        reduce = getattr(dist, name)
        setattr(dist, name, lambda *args, **kwargs: (found.append(1), reduce(*args, **kwargs))[1])
    runner.train()
    (folder / f"{rank()}.txt").write_text(str(len(found)))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("accumulated", "exchanges"), [(1, 8), (3, 3)])  # after 3, 6 and 8
def test_gradients_are_exchanged_once_for_each_step(strategy, accumulated, exchanges, tmp_path):
    on_ranks(2, count_exchanges, tmp_path, strategy, accumulated)
    assert [(tmp_path / f"{r}.txt").read_text() for r in range(2)] == [str(exchanges)] * 2
