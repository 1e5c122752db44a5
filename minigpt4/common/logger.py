"""What a run tells its user: console lines, log.txt and loss.png. Only rank 0 speaks and writes."""

import json
import logging
from pathlib import Path
from typing import Any

from minigpt4.common.dist_utils import is_main

LOG_FILE = "log.txt"


def setup_logger() -> None:
    """Sends log records to stderr; ranks other than 0 show warnings and errors only."""
    level = logging.INFO if is_main() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", force=True)
    for chatty in ("httpx", "matplotlib", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class RunLog:
    """`log.txt` of an output folder: one JSON object a line. A new run starts it anew."""

    def __init__(self, folder: Path):
        self.folder = folder
        if is_main():
            (folder / LOG_FILE).write_text("")

    def write(self, **record: Any) -> None:
        if is_main():
            with (self.folder / LOG_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")


def plot_loss(folder: Path) -> None:
    """Draws `loss.png` from `log.txt`: training loss by step, validation loss at the end of each epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib is slow to import
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
    for key, style in (("train_loss", "-"), ("val_loss", "o")):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=key.replace("_", " "))
            axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120)
