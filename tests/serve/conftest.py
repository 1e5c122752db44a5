"""Fixtures: the bundled model, as the doors load it."""

import pytest

from minigpt4.common.config import load_config
from minigpt4.serve.loading import DEFAULT_CONFIG, load_model


@pytest.fixture(scope="package")
def tiny():
    """(model, processor)"""
    return load_model(load_config(DEFAULT_CONFIG))


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A file of 20 frames."""
    import cv2
    import numpy as np

    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    for shade in range(0, 200, 10):
        writer.write(np.full((64, 64, 3), shade, np.uint8))
    writer.release()
    return file
