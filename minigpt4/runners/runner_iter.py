"""The runner by iterations: `run.max_iters` in all, in pieces of `run.iters_per_epoch`."""

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.runners.runner_base import RunnerBase


@registry.register_runner("runner_iter")
class RunnerIter(RunnerBase):
    """Trains for `run.max_iters` batches; validates and saves after every `run.iters_per_epoch` and at the end."""

    def _total_iters(self) -> int:
        assert self.run.max_iters is not None  # checked
        return self.run.max_iters

    @staticmethod
    def check(config: Config) -> None:
        RunnerBase.check(config)
        if config.run.max_iters is None:
            raise UserError("run.max_iters: not set. Set it to the number of batches, or run.runner=runner_base.")
