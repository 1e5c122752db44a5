"""Trains the bundled model a few steps with each strategy, one after another. A test starts it under torchrun."""

import shutil
import sys
from pathlib import Path

from minigpt4.common.console_log import setup_logger
from minigpt4.common.distributed import barrier, distributed, is_main, pick_device, seed_everything, world_size
from minigpt4.config.loading import load_config
from minigpt4.inference.loading import load_prompter
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

ROOT = Path(__file__).parents[2]
STRATEGIES = ["ddp", "fsdp", *(f"deepspeed{stage}" for stage in range(4))]


def options_of(name: str, data: Path, out: Path) -> list[str]:
    """Of a run with a global batch of 8, in two accumulated halves."""
    return [
        f"run.strategy={name.rstrip('0123')}",
        *([f"run.zero_stage={name[-1]}"] if name[-1].isdigit() else []),
        f"run.batch_size_train={4 // world_size()}",
        f"run.output_dir={out / name}",
        f"datasets.cc_sbu_align.build_info.storage={data}/stage2",
        f"datasets.cc_sbu_align.build_info.valid_storage={data}/stage2_val",
        *(
            "model.prompt_path=''",
            "model.ckpt=null",
            "model.lora_r=2",
            "model.lora_dropout=0",
            "model.use_grad_checkpoint=True",
        ),
        *("run.accum_grad_iters=2", "run.max_grad_norm=0.5", "run.init_lr=1e-3", "run.warmup_steps=0"),
        *("run.max_epoch=2", "run.iters_per_epoch=4", "run.log_freq=1", "run.num_workers=0", "run.batch_size_eval=7"),
    ]


def train(name: str, data: Path, out: Path, *more: str) -> None:
    config = load_config(
        ROOT / "train_configs" / "minigpt4_tiny_stage2_finetune.yaml", [*options_of(name, data, out), *more]
    )
    RunnerBase.check(config)
    seed_everything(config.run.seed)  # as train.py
    task = ImageTextPretrainTask(config)
    datasets = {split: task.build_datasets(split) for split in ("train", "val")}
    RunnerBase(config, task, task.build_model(), datasets, load_prompter(config.model)).train()


if __name__ == "__main__":
    data, out, *names = sys.argv[1:]
    with distributed(pick_device("cpu")):
        setup_logger()
        for name in names:
            train(name, Path(data), Path(out))
            again = Path(out) / f"{name}_resumed"
            if is_main():
                shutil.copytree(Path(out) / name, again, ignore=shutil.ignore_patterns("checkpoint_1"))
            barrier()
            train(name, Path(data), Path(out), f"run.output_dir={again}", "run.resume=auto")
