"""DeepSpeed's ZeRO as a strategy (Rajbhandari et al. 2020, arXiv:1910.02054)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt4.common.distributed import all_gather, rank, world_size
from minigpt4.common.errors import Problems, UserError, first_line
from minigpt4.config.schema import RunConfig
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.optims import build_optimizer
from minigpt4.runners.strategies.deepspeed_files import load_data, tensors_only
from minigpt4.runners.strategies.strategy import Strategy, amp_dtype

_TAG = "deepspeed"  # the engine's folder within a checkpoint


class DeepSpeed(Strategy):
    """ZeRO: stage 1 shares out the optimizer's state, 2 the gradients too, 3 the weights too; 0 shares out nothing."""

    def __init__(self, model: MiniGPT4, run: RunConfig, device: torch.device):
        if device.type == "cpu":  # else it picks what it finds
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # `RunnerBase.check` has looked for it

        # its faster exchange between processes on a CPU: compiling it takes minutes, and needs a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.model, self.run, self.device = model, run, device
        self.sharded = run.zero_stage == 3
        self.amp_dtype = amp_dtype(run, device)
        self.deepspeed = deepspeed
        half = any(p.dtype == torch.float16 for p in model.parameters())
        if self.sharded and half and device.type == "cpu" and self.amp_dtype != torch.float32:
            raise UserError(  # it joins the ranks' shares under autocast, for which torch has no fp16 on a CPU
                "run.zero_stage: on a CPU stage 3 mixes no fp16 weights with bf16. Set model.vit_precision=bf16 and "
                "model.llm_dtype=bf16, or run.strategy=fsdp."
            )
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": run.batch_size_train,
            "gradient_accumulation_steps": run.accum_grad_iters,
            "gradient_clipping": run.max_grad_norm or 0.0,
            "zero_optimization": {"stage": run.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if self.amp_dtype != torch.float32:
            settings["torch_autocast"] = {"enabled": True, "dtype": str(self.amp_dtype).removeprefix("torch.")}
        optimizer = build_optimizer(model, run)  # first: it looks at shapes, which stage 3 takes away
        if self.sharded:  # weight by weight: the whole may not fit the device
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        model.place(device)
        # its logger speaks at every level; the root's is enough
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.wrapped: nn.Module = self.engine

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)  # the loop has divided it
        if not last:
            self.engine.step()

    def step(self, lr: float) -> bool:
        self._set_lr(lr)
        if self.run.zero_stage == 0:  # of which alone the engine does not look at the gradients
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            if not nn.utils.get_total_norm(gradients).isfinite():
                self.engine.zero_grad()
                return False
        self.engine.step()
        return bool(self.engine.was_step_applied())

    def weights(self) -> dict[str, Tensor]:
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with self.deepspeed.zero.GatheredParameters(list(trained.values())):
            return {n: p.detach().cpu().clone() for n, p in trained.items()}

    def save(self, folder: Path) -> dict[str, Any]:
        self.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
        return {"made_by": self.made_by}

    @property
    def made_by(self) -> str:
        return f"{super().made_by} with run.zero_stage={self.run.zero_stage}"

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        if state.get("made_by") != self.made_by:  # each process has files of its own, as the stage shares them out
            self._refuse(folder, state)
        files = sorted((folder / _TAG).glob("*.pt"))
        problems = Problems()
        for file in files[rank() :: world_size()]:
            problems.attempt(load_data, file)  # for its error alone
        if found := all_gather(list(problems)):  # all ranks refuse what one has found
            raise UserError(f"run.resume: {found[0]} Use another checkpoint.")
        try:
            with self._own_settings(), tensors_only():
                self.engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        except (OSError, LookupError) as error:  # a file or a part of one is missing
            raise UserError(
                f"run.resume: DeepSpeed can't read '{folder / _TAG}' ({first_line(error)}). Use another checkpoint."
            ) from error
