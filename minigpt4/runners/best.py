"""`checkpoint_best`: the weights of the epoch that did best, and what it was measured to be."""

import math
from pathlib import Path

from minigpt4.common.checksums import write_checksums
from minigpt4.common.distributed import is_main
from minigpt4.common.errors import writing
from minigpt4.config.finding import CONFIG
from minigpt4.config.loading import save_config
from minigpt4.config.schema import Config
from minigpt4.models.checkpoint import save_weights
from minigpt4.models.weight_file import load_tensors
from minigpt4.runners.run_state import read_measures, write_measures

BEST = "checkpoint_best"


class Best:
    """Keeps the weights with the lowest `val_loss`, or the highest `run.metric` where one is named.

    Attributes:
        rank: the best so far; the lower the better.
    """

    def __init__(self, config: Config):
        self.config, self.metric = config, config.run.metric
        self.folder = Path(config.run.output_dir) / BEST
        self.rank = math.inf

    def resume(self, epochs: float) -> None:
        """Restores the best score, unless it was measured after `epochs`."""
        found = read_measures(self.folder)
        if found and found["epochs"] <= epochs:
            self.rank = self._rank_of(found, math.inf)

    def note(self, folder: Path, epochs: float, measures: dict[str, float]) -> None:
        """Records what was measured of a checkpoint, in its folder too. All ranks may call it; rank 0 writes.

        Raises:
            UserError: it can't be written.
        """
        rank = self._rank_of(measures, -math.inf)
        if is_main():
            with writing("run.output_dir", self.folder):
                if rank < self.rank or rank == -math.inf:  # without any measure the last is the best
                    save_weights(load_tensors(folder), self.folder)
                    save_config(self.config, self.folder / CONFIG)
                    write_measures(self.folder, epochs, measures)
                    write_checksums(self.folder)
                write_measures(folder, epochs, measures)  # last: the epoch is done with
        self.rank = min(self.rank, rank)

    def _rank_of(self, measures: dict[str, float], otherwise: float) -> float:
        if self.metric:
            return -measures.get(self.metric, -otherwise)
        return measures.get("val_loss", otherwise)
