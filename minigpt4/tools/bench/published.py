"""Figures of MiniGPT-4 (7B) that were published for an Ascend 910B3, batch 1."""

from minigpt4.tools.bench.measuring import Times

ASCEND_910B3 = [
    Times(256, 64, 847.2, 5.98, 13.35),
    Times(512, 128, 1736.0, 11.7, 13.58),
    Times(1024, 256, 3599.9, 35.1, 13.98),
    Times(3584, 512, 8483.5, 344.7, 15.93),
]
IMAGE_MS = {"Ascend 910B3": 18.0, "GPU": 1185.0}
LENGTHS = [(row.prompt, row.new) for row in ASCEND_910B3]


def published(prompt: int, new: int) -> Times | None:
    """The published row of these lengths."""
    return next((row for row in ASCEND_910B3 if (row.prompt, row.new) == (prompt, new)), None)
