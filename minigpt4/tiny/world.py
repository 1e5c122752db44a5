"""The digit-scene world: one to five coloured handwritten digits on a dark 112 x 112 picture.

The handwriting is scikit-learn's ``load_digits`` (1797 scans of 8 x 8 grey values 0..16), so that the world needs
no download. The scans are split by index; no scan is ever shared between the splits.
"""

import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

SIDE = 112
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (235, 45, 45),
    "green": (50, 205, 70),
    "blue": (70, 110, 255),
    "yellow": (245, 220, 50),
    "purple": (190, 70, 225),
    "white": (240, 240, 240),
}
POSITIONS: dict[str, tuple[float, float]] = {  # centre as (x, y), in parts of the side
    "left": (0.19, 0.5),
    "right": (0.81, 0.5),
    "top": (0.5, 0.19),
    "bottom": (0.5, 0.81),
    "middle": (0.5, 0.5),
}
SPLITS = {"train": (0, 1200), "val": (1200, 1400), "test": (1400, 1797)}
MARGIN = 2  # empty scan pixels around a scan, so that a turned digit keeps its corners


@dataclass(frozen=True)
class Fact:
    """What language can say about one digit of a scene."""

    digit: int
    color: str
    position: str


@dataclass(frozen=True)
class Look:
    """How one digit is drawn: lengths are in parts of the side, the angle is in radians."""

    writing: int
    center: tuple[float, float]
    size: float
    angle: float = 0.0
    shear: float = 0.0
    stretch: float = 1.0
    thickness: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Facts in the order of POSITIONS, a look for each, and the seed of the background."""

    facts: tuple[Fact, ...]
    looks: tuple[Look, ...]
    background: int


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans as (1797, 8, 8) floats in 0..1 and their digits as (1797,) integers."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16.0, data.target


@cache
def writings(split: str, digit: int) -> tuple[int, ...]:
    """The indices of a split's scans of a digit."""
    first, last = SPLITS[split]
    return tuple(index for index in range(first, last) if scans()[1][index] == digit)


def sample_facts(rng: random.Random, least: int = 1, most: int = 3) -> tuple[Fact, ...]:
    """`least`..`most` digits; digits, colours and positions are distinct within a scene."""
    count = rng.randint(least, most)
    digits = rng.sample(range(10), count)
    colors = rng.sample(list(COLORS), count)
    positions = set(rng.sample(list(POSITIONS), count))
    ordered = [position for position in POSITIONS if position in positions]
    return tuple(Fact(*fact) for fact in zip(digits, colors, ordered, strict=True))


def sample_scene(rng: random.Random, split: str, *, least: int = 1, most: int = 3, warped: bool = False) -> Scene:
    """A scene with handwriting of one split. `warped` varies the handwriting, for training the vision tower."""
    facts = sample_facts(rng, least, most)
    looks = tuple(_sample_look(rng, split, fact, warped) for fact in facts)
    return Scene(facts, looks, rng.getrandbits(32))


def _sample_look(rng: random.Random, split: str, fact: Fact, warped: bool) -> Look:
    x, y = POSITIONS[fact.position]
    center = (x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04))
    look = Look(rng.choice(writings(split, fact.digit)), center, rng.uniform(0.27, 0.35))
    if not warped:
        return look
    return replace(
        look,
        angle=rng.uniform(-0.22, 0.22),
        shear=rng.uniform(-0.22, 0.22),
        stretch=rng.uniform(0.85, 1.18),
        thickness=rng.uniform(0.65, 1.5),
    )


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of SIDE x SIDE; the same scene always gives the same pixels."""
    rng = np.random.default_rng(scene.background)
    canvas = _background(rng)
    for fact, look in zip(scene.facts, scene.looks, strict=True):
        left, top, pixels = _square(look)
        box = np.s_[max(top, 0) : min(top + pixels, SIDE), max(left, 0) : min(left + pixels, SIDE)]
        ink = _ink(look, pixels)[box[0].start - top : box[0].stop - top, box[1].start - left : box[1].stop - left, None]
        color = np.array(COLORS[fact.color], np.float32) * rng.uniform(0.8, 1.0)
        canvas[box] = canvas[box] * (1 - ink) + color * ink
    return Image.fromarray(canvas.astype(np.uint8))


def _square(look: Look) -> tuple[int, int, int]:
    """Left, top and side of the square that a digit is drawn in, in pixels; it may leave the picture."""
    pixels = max(8, round(look.size * SIDE))
    left, top = (round(c * SIDE - pixels / 2) for c in look.center)
    return left, top, pixels


def box(look: Look) -> tuple[int, int, int, int]:
    """x, y, width and height of a digit's square within the picture, in pixels, as COCO's boxes are written."""
    left, top, pixels = _square(look)
    right, bottom = min(left + pixels, SIDE), min(top + pixels, SIDE)
    left, top = max(left, 0), max(top, 0)
    return left, top, right - left, bottom - top


def _background(rng: np.random.Generator) -> np.ndarray:
    """Dark (SIDE, SIDE, 3) floats: a plain or graded colour below 60, with grain below 20."""
    start, end = rng.uniform(0, 60, (2, 3)).astype(np.float32)
    if rng.random() < 0.5:
        end = start
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None]
    graded = start + (end - start) * ramp
    shape = (SIDE, 1, 3) if rng.random() < 0.5 else (1, SIDE, 3)
    grain = rng.integers(0, 20, (SIDE, SIDE, 1), dtype=np.uint8)
    return graded.reshape(shape) + grain.astype(np.float32)


def _ink(look: Look, pixels: int) -> np.ndarray:
    """The warped scan as (pixels, pixels) opacities in 0..1."""
    scan = np.pad(scans()[0][look.writing], MARGIN)
    middle, step = scan.shape[0] / 2, 8 / pixels
    cos, sin = np.cos(look.angle), np.sin(look.angle)
    matrix = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, look.shear], [0, 1]])
    matrix = matrix @ np.diag([look.stretch, 1 / look.stretch]) * step
    offset = middle - matrix @ np.array([pixels / 2, pixels / 2])
    source = Image.fromarray((scan * 255).astype(np.uint8))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    drawn = source.transform((pixels, pixels), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return (np.asarray(drawn, np.float32) / 255) ** look.thickness


def covered_patches(scene: Scene, patch: int = 14) -> np.ndarray:
    """For each patch, row by row, the index of the digit that covers it, or -1: (patches,) integers."""
    ticks = (np.arange(SIDE // patch) + 0.5) * patch / SIDE
    ys, xs = (grid.reshape(-1) for grid in np.meshgrid(ticks, ticks, indexing="ij"))
    owner, nearest = np.full(len(xs), -1), np.full(len(xs), np.inf)
    for index, look in enumerate(scene.looks):
        distance = np.maximum(abs(xs - look.center[0]), abs(ys - look.center[1]))
        mine = (distance < look.size / 2) & (distance < nearest)
        owner[mine], nearest[mine] = index, distance[mine]
    return owner
