"""The runner: data, strategy, schedule, the loop, validation, checkpoints to continue from, the log."""

import logging
import math
import signal
import threading
import time
from contextlib import closing
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minigpt4.common import distributed
from minigpt4.common.errors import UserError, writing
from minigpt4.common.registry import registry
from minigpt4.common.signals import first_signal
from minigpt4.config.schema import Config
from minigpt4.conversation.prompter import Prompter
from minigpt4.datasets.loading import Batch, LayOut, to_device
from minigpt4.datasets.mixture import TrainBatches
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.plain_text import check_plain_text
from minigpt4.runners import output_folder, run_state
from minigpt4.runners.best import Best
from minigpt4.runners.guard import LossMonitor
from minigpt4.runners.log import Meter, RunLog, parts_table, plot_loss, progress_text
from minigpt4.runners.optims import build_schedule
from minigpt4.runners.strategies.building import build_strategy
from minigpt4.runners.validation import Stopped, Validation
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

logger = logging.getLogger(__name__)


@registry.register_runner("runner_base", "runner_iter")
class RunnerBase:
    """Trains for `run.max_epoch` epochs, runner_iter for `run.max_iters` batches in pieces of `run.iters_per_epoch`.

    Everything is built here, in order; the methods only run it. The strategy brings the model to the device.

    Args:
        datasets: maps a split to {name: dataset}.
        prompter: lays out the conversations of samples, in data workers; without one the samples are the model's own
            already.

    Attributes:
        step: batches that each process has trained with, over all epochs.

    Raises:
        UserError: there is nothing to continue from, an earlier run's checkpoints would be lost, or the data or the
            strategy don't suit the config.
    """

    def __init__(
        self,
        config: Config,
        task: ImageTextPretrainTask,
        model: MiniGPT4,
        datasets: dict[str, Any],
        prompter: Prompter | None = None,
    ):
        run = config.run
        self.config, self.run, self.task, self.model = config, run, task, model
        self.device = distributed.pick_device(run.device)
        self.output_dir = Path(run.output_dir)
        resumed = run_state.checkpoint_to_continue(run.resume, self.output_dir)
        distributed.seed_everything(run.seed + distributed.rank())  # ranks draw different prompts
        if resumed:
            run_state.load_weights(model, resumed[0])
        else:
            if not run.shards_weights:  # else the device is filled bit by bit
                model.place(self.device)
            if distributed.is_main() and prompter and config.model.plain_text:
                check_plain_text(model.llm, prompter.tokenizer, config.model.plain_text)
        self.strategy = build_strategy(model, run, self.device)
        lay_out = LayOut(prompter, training=True) if prompter else None
        self.batches = TrainBatches(datasets["train"], config, lay_out, self.device.type not in ("cpu", "mps"))
        self.signalled = threading.Event()  # this rank, by SIGTERM or SIGINT
        prepare = LayOut(prompter, training=False) if prompter else None
        self.validation = Validation(config, task, self.strategy, datasets, self.signalled, prepare)
        self.iters_per_epoch = run.iters_per_epoch or self.batches.length or 0
        if not self.iters_per_epoch:
            cure = "Set it to the batches of an epoch."
            raise UserError(f"run.iters_per_epoch: not set, and shards have no length. {cure}")
        self.total = run.max_iters or run.max_epoch * self.iters_per_epoch
        self.schedule = build_schedule(run, self.iters_per_epoch)
        self.step = self.saved = 0
        self.ratio = Fraction(1)  # of an epoch's length to that before
        self.best = Best(config)
        self.validation_due = False  # a validation that a signal or an error cut off
        self.epoch_loss = (0.0, 0)  # sum and number of this epoch's losses
        self.stopping = False  # all ranks know of one
        self.meter = Meter()
        self.guard = LossMonitor(run.max_bad_steps, model.vocabulary)
        if resumed:
            self._restore(*resumed)
        per_epoch = self.iters_per_epoch if self.ratio != 1 else None
        output_folder.prepare(config, self.device, self.step if resumed else None, per_epoch)
        with writing("run.output_dir", self.output_dir):  # last: a run that can't start leaves the earlier one's log
            self.log = RunLog(config, self.step, self.ratio)

    @staticmethod
    def check(config: Config) -> None:
        """Refuses, before anything is loaded, what this runner can't do.

        Raises:
            UserError: the config asks for it.
        """
        run = config.run
        if run.evaluate:
            raise UserError("run.evaluate: True trains nothing. Use minigpt4 evaluate, or set run.evaluate=False.")
        if run.max_iters is not None and run.runner == "runner_base":
            raise UserError("run.max_iters: runner_base counts epochs. Set run.max_epoch, or run.runner=runner_iter.")
        if run.max_iters is None and run.runner == "runner_iter":
            raise UserError("run.max_iters: not set. Set it to the number of batches, or run.runner=runner_base.")
        if run.cache_features and (trained := config.model.trained & {"vit", "qformer"}):
            raise UserError(
                f"run.cache_features: features change while {' and '.join(sorted(trained))} train. Set it to null, or "
                "model.unfreeze=[]."
            )
        for package, wanted in (("deepspeed", run.strategy == "deepspeed"), ("wandb", run.wandb_log)):
            if wanted and find_spec(package) is None:
                raise UserError(f"run: {package} is asked for but not installed: pip install {package}")
        Validation.check(config)
        run_state.checkpoint_to_continue(run.resume, Path(run.output_dir))

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        new = self.iters_per_epoch
        old = state.get("iters_per_epoch", new)
        self.ratio = Fraction(new, old) if self.run.max_iters is None else Fraction(1)  # those are batches in all
        self.step = self.saved = int(state["step"] * self.ratio)  # down: no epoch ends without its validation
        if self.ratio != 1:
            logger.warning("an epoch has %d steps now, %d before: step %d is %d", new, old, state["step"], self.step)
        self.epoch_loss = tuple(state["epoch_loss"])
        if state.get("ends_epoch"):
            self.validation_due = run_state.read_measures(folder) is None
            self.epoch_loss = self.epoch_loss if self.validation_due else (0.0, 0)
        self.best.resume(state["step"] / old)
        self.strategy.load(folder, state["engine"])
        same = state["processes"] == distributed.world_size()
        self.batches.load_state_dict([state["data"] for state in state["ranks"]])
        if same:
            run_state.set_rng_state(state["ranks"][distributed.rank()]["rng"], self.device)
        logger.info("continuing from %s: step %d of %d", folder, self.step, self.total)

    def train(self) -> None:
        """Runs all epochs. Each ends with a checkpoint, validation, a line in log.txt and a new loss.png.

        On SIGTERM or SIGINT it finishes the step, saves and returns; a validation that this cuts off is made up for
        when the run continues.

        Raises:
            UserError: the losses are not numbers, or too much of the data is unusable.
        """
        processes, batch = distributed.world_size(), self.run.batch_size_train
        logger.info("%s\n", "\n" + parts_table(self.model))
        logger.info(
            "%d steps, %d an epoch; %d processes (%s) x batch %d x %d accumulated = %d samples a step of the optimizer",
            *(self.total, self.iters_per_epoch, processes, type(self.strategy).__name__, batch),
            *(self.run.accum_grad_iters, processes * batch * self.run.accum_grad_iters),
        )
        self.began = time.perf_counter(), self.step
        if self.step >= self.total:
            logger.info("nothing is left to do: step %d of %d. Raise run.max_epoch to continue", self.step, self.total)
        with first_signal(self.signalled.set, signal.SIGTERM, signal.SIGINT), closing(self.batches):
            if self.validation_due:
                self._end_epoch((self.step - 1) // self.iters_per_epoch, time.perf_counter())
            while self.step < self.total and not self.stopping:
                epoch = self.step // self.iters_per_epoch
                started = time.perf_counter()
                if self._train_epoch(epoch):
                    self._end_epoch(epoch, started)
        self.log.close()
        logger.info("log, loss.png and checkpoints are in %s", self.output_dir)

    def _train_epoch(self, epoch: int) -> bool:
        """Trains to the epoch's end and returns True, or False where a signal ended it, with a checkpoint."""
        self.strategy.wrapped.train()
        first = epoch * self.iters_per_epoch
        end = min(first + self.iters_per_epoch, self.total)
        window: list[float] = []
        self.meter.reset()
        done, quiet = self.step - first, not distributed.is_main()
        with tqdm(total=end - first, initial=done, desc=f"epoch {epoch}", disable=quiet) as bar:
            while self.step < end:
                update, lr = self.ends_step(self.step - first, end - first), self.schedule(self.step)
                batch = self.next_batch()
                loss, good = self.train_iteration(batch, lr, update)
                self.step += 1
                if not self.guard.record(good, loss, batch, update):
                    self._save(f"checkpoint_step_{self.step}")
                    self.guard.stop_run(self.output_dir)
                if math.isfinite(loss):
                    window.append(loss)
                    self.epoch_loss = (self.epoch_loss[0] + loss, self.epoch_loss[1] + 1)
                bar.update()
                if self.step % self.run.log_freq == 0 or self.step == end:
                    self._report(bar, window, lr)
                    window = []
                due = self.run.save_steps and self.step - self.saved >= self.run.save_steps
                if update and self.step < end and (self.stopping or due):
                    self._save(f"checkpoint_step_{self.step}")
                    if self.stopping:
                        logger.warning("stopped by a signal; run.resume=auto continues from step %d", self.step)
                        return False
        return True

    def ends_step(self, i: int, length: int) -> bool:
        """Whether the optimizer steps after batch `i` of so many."""
        # the last, incomplete group of an epoch counts too: no gradient is lost or carried over
        return (i + 1) % self.run.accum_grad_iters == 0 or i + 1 == length

    def next_batch(self) -> Batch:
        """The next training batch; how long it was waited for is noted."""
        started = time.perf_counter()
        batch = next(self.batches)
        self.meter.waited += time.perf_counter() - started
        return batch

    def train_iteration(self, batch: Batch, lr: float, update: bool) -> tuple[float, bool]:
        """Trains with one batch.

        Returns:
            The mean loss over the label tokens of all ranks, and whether it and the step's gradients are numbers.
        """
        with self.strategy.accumulating(last=update):
            with self.strategy.autocast():
                output = self.task.train_step(self.strategy.wrapped, to_device(batch, self.device))
            loss, tokens = output["loss"], output["tokens"].to(output["loss"])
            signalled = tokens.new_tensor(float(self.signalled.is_set()))
            shared = torch.stack([loss.detach() * tokens, tokens, signalled])
            total, all_tokens, stopping = distributed.all_reduce_sum(shared).tolist()
            mean = total / max(all_tokens, 1)
            finite = math.isfinite(mean)
            # so that several ranks' mean is over tokens, as one process's with the same global batch; a bad loss spoils
            # the gradients wherever an engine keeps those of the step, so that it refuses them all
            weight = tokens * distributed.world_size() / max(all_tokens, 1) if finite else math.nan
            self.strategy.backward(loss * weight / self.run.accum_grad_iters, last=update)
        self.stopping = stopping > 0  # all ranks stop at the same step
        good = self.strategy.step(lr) if update else True
        self.meter.samples += len(next(iter(batch.values())))
        self.meter.tokens += int(all_tokens)
        return mean, finite and good

    def _report(self, bar: tqdm, losses: list[float], lr: float) -> None:
        """Writes to the console and the log what the steps since the last report were like."""
        loss = sum(losses) / len(losses) if losses else math.nan
        numbers = self.meter.read(self.device)
        seconds, steps = time.perf_counter() - self.began[0], self.step - self.began[1]
        eta = (self.total - self.step) * seconds / steps  # of the run
        bar.set_postfix(progress_text(loss, lr, eta, numbers))
        if losses:
            self.log.write(step=self.step, train_loss=loss, lr=lr, **numbers)
            self.guard.watch(self.step, loss)

    def _end_epoch(self, epoch: int, started: float) -> None:
        """Saves, and only then validates: an error or a signal there costs no training."""
        name, rng = f"checkpoint_{epoch}", run_state.rng_state(self.device)
        self._save(name, ends_epoch=True)
        try:
            measures = self.validation.measure()
        except Stopped:
            logger.warning("stopped by a signal; run.resume=auto validates epoch %d and continues", epoch)
            self.stopping = True
            return
        run_state.set_rng_state(rng, self.device)  # as if the checkpoint had been continued from
        total, count = self.epoch_loss
        numbers = {"epoch_loss": total / max(count, 1), **measures}
        self.log.write(epoch=epoch, step=self.step, **numbers, seconds=round(time.perf_counter() - started, 2))
        logger.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        self.epoch_loss = (0.0, 0)
        self.best.note(self.output_dir / name, self.step / self.iters_per_epoch, measures)
        if distributed.is_main():
            plot_loss(self.output_dir)
        distributed.barrier()

    def _save(self, name: str, ends_epoch: bool = False) -> None:
        """Writes a checkpoint to continue from, and loss.png. All ranks must call it.

        Raises:
            UserError: it can't be written; the earlier ones stay.
        """
        own = {"rng": run_state.rng_state(self.device), "data": self.batches.state_dict()}
        state = {
            "step": self.step,
            "iters_per_epoch": self.iters_per_epoch,
            "ends_epoch": ends_epoch,
            "epoch_loss": self.epoch_loss,
            "processes": distributed.world_size(),
            "ranks": distributed.all_gather([own]),
        }
        output_folder.save_checkpoint(self.config, name, self.strategy, state)
        self.saved = self.step
        if distributed.is_main():
            plot_loss(self.output_dir)
        distributed.barrier()
