"""What a process that decodes is made to call. It imports this: nothing here is slow to import."""

import os
import signal
import time

from PIL import Image


def endless(*_) -> list[Image.Image]:
    while True:
        time.sleep(60)


def killed(*_) -> list[Image.Image]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def greedy(*_) -> list[Image.Image]:
    return [Image.new("RGB", (30_000, 30_000))]


def process_id(*_) -> list[Image.Image]:
    """As the width of a picture."""
    return [Image.new("RGB", (os.getpid(), 1))]
