"""How one model trains on several processes. The engines are torch's; a strategy is what the loop needs of one."""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minigpt4.common.distributed import is_main, world_size
from minigpt4.common.errors import UserError
from minigpt4.config.schema import RunConfig
from minigpt4.models.llm import pick_dtype
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.optims import build_optimizer

logger = logging.getLogger(__name__)


class Strategy:
    """One process, or DistributedDataParallel: each process holds the whole model.

    Attributes:
        wrapped: what a training step calls; the model's own methods stay on `model`.
        sharded: whether no process can run the model without the others.
    """

    sharded = False

    def __init__(self, model: MiniGPT4, run: RunConfig, device: torch.device):
        self.model, self.run, self.device = model, run, device
        self.amp_dtype = amp_dtype(run, device)
        self.wrapped = self._wrap()
        self.optimizer = build_optimizer(model, run)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)

    def _wrap(self) -> nn.Module:
        self.model.place(self.device)
        if world_size() == 1:
            return self.model
        name = "forward_sync_buffers"  # all buffers are constants; before torch 2.15 the argument had another name
        name = name if name in signature(DistributedDataParallel).parameters else "broadcast_buffers"
        return DistributedDataParallel(self.model, **{name: False})  # type: ignore[arg-type]

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, as the config says."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype != torch.float32)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward: gradients are exchanged with the last batch of a group only."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> bool:
        """One step of the optimizer with the gradients since the last, clipped where the config says so.

        Returns:
            False, and nothing is done, where gradients are not numbers. Not as long as a scaler can take care: that is
            usual with it, and it lowers the scale.
        """
        self._set_lr(lr)
        self.scaler.unscale_(self.optimizer)
        most = math.inf if self.run.max_grad_norm is None else self.run.max_grad_norm
        norm = nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], most)
        finite = bool(_whole(norm).isfinite())
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # a scaler skips what is not finite
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return finite or self.scaler.get_scale() > 1  # without a scaler it is 1

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def weights(self) -> dict[str, Tensor]:
        """The trainable weights, whole, on the CPU. All processes must call it."""
        return {n: _whole(p.detach()).cpu() for n, p in self.model.named_parameters() if p.requires_grad}

    def save(self, folder: Path) -> dict[str, Any]:
        """State of the optimizer and the scaler, whole, for the training state. All processes must call it.

        An engine with files of its own writes them to `folder`.
        """
        state = self.optimizer.state_dict()
        # one by one, and kept where it is written alone: the whole may not fit
        state["state"] = {i: {k: _kept(v) for k, v in s.items()} for i, s in state["state"].items()}
        return {"made_by": self.made_by, "optimizer": state, "scaler": self.scaler.state_dict()}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Continues from what `save` returned, with the config's settings of the optimizer.

        Raises:
            UserError: it is of a strategy, or a number of processes, that this one can't continue from.
        """
        if "optimizer" not in state:
            self._refuse(folder, state)
        saved, parameters = state["optimizer"], [p for group in self.optimizer.param_groups for p in group["params"]]
        saved["state"] = {i: {k: _as(parameters[i], v) for k, v in s.items()} for i, s in saved["state"].items()}
        with self._own_settings():
            self.optimizer.load_state_dict(saved)
        if state["scaler"]:  # empty without fp16
            self.scaler.load_state_dict(state["scaler"])

    @property
    def made_by(self) -> str:
        """What marks a checkpoint that another strategy can't continue from."""
        count = world_size()
        return f"run.strategy={self.run.strategy} on {count} processes" if count > 1 else "a single process"

    def _refuse(self, folder: Path, state: dict[str, Any]) -> NoReturn:
        raise UserError(
            f"run.resume: '{folder}' was written by {state.get('made_by', 'an earlier version')}; {self.made_by} can't "
            "continue from it. Set run.strategy and run.zero_stage as they were and start as many processes, or start "
            f"with its weights alone: model.ckpt={folder}, run.resume=null and another run.output_dir."
        )

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """Keeps weight decay, betas and eps as configured, whatever the state that is loaded meanwhile had."""
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        yield
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)


def amp_dtype(run: RunConfig, device: torch.device) -> torch.dtype:
    """The dtype of mixed precision; fp32 without."""
    if not run.amp:
        return torch.float32
    if run.amp_dtype == "auto" and device.type == "cpu":
        return torch.bfloat16
    return pick_dtype(run.amp_dtype, device)


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _kept(value: Any) -> Any:
    """A whole value on the CPU, on the rank that writes checkpoints; None on the others. All must call it."""
    whole = _whole(value)
    if not is_main():
        return None
    return whole.cpu() if isinstance(whole, Tensor) else whole


def _as(parameter: Tensor, value: Any) -> Any:
    """A whole tensor, sharded as the parameter is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.ndim:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
