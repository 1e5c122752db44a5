import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt4.tiny import text, world

SEEDS = st.integers(0, 2**32)
COUNTS = st.integers(1, 5)


@given(seed=SEEDS, most=COUNTS)
def test_facts_are_distinct(seed: int, most: int) -> None:
    facts = world.sample_facts(random.Random(seed), 1, most)
    assert 1 <= len(facts) <= most
    for values in zip(*(vars(fact).values() for fact in facts), strict=True):
        assert len(set(values)) == len(facts)


def test_splits_share_no_handwriting() -> None:
    ranges = [set(range(*bounds)) for bounds in world.SPLITS.values()]
    assert sum(map(len, ranges)) == len(set.union(*ranges)) == 1797


@pytest.mark.slow
@pytest.mark.parametrize("split", world.SPLITS)
def test_scene_stays_in_its_split_and_shows_its_digits(split: str) -> None:
    first, last = world.SPLITS[split]
    labels = world.scans()[1]
    for seed in range(50):
        scene = world.sample_scene(random.Random(seed), split, most=5)
        for fact, look in zip(scene.facts, scene.looks, strict=True):
            assert first <= look.writing < last
            assert labels[look.writing] == fact.digit


def test_same_seed_same_pixels_and_other_seed_other_pixels() -> None:
    def draw(seed: int) -> np.ndarray:
        return np.asarray(world.render(world.sample_scene(random.Random(seed), "train", warped=True)))

    assert draw(3).shape == (world.SIDE, world.SIDE, 3)
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_a_digit_is_drawn_in_its_color_where_it_says() -> None:
    facts = (world.Fact(1, "red", "left"), world.Fact(7, "blue", "right"))
    looks = tuple(world.Look(world.writings("train", f.digit)[0], world.POSITIONS[f.position], 0.3) for f in facts)
    pixels = np.asarray(world.render(world.Scene(facts, looks, background=0))).astype(int)
    half = world.SIDE // 2
    assert pixels[:, :half, 0].max() > 170 and pixels[:, half:, 0].max() < 120
    assert pixels[:, half:, 2].max() > 170 and pixels[:, :half, 2].max() < 120


def test_covered_patches_follow_the_digit() -> None:
    scene = world.Scene((world.Fact(1, "red", "left"),), (world.Look(0, world.POSITIONS["left"], 0.3),), 0)
    grid = world.covered_patches(scene).reshape(8, 8)
    assert set(np.argwhere(grid == 0)[:, 1]) <= {0, 1, 2}
    assert (grid == 0).sum() >= 4


@given(seed=SEEDS)
def test_caption_survives_the_product_s_caption_processor(seed: int) -> None:
    words = text.caption(world.sample_facts(random.Random(seed)))
    assert words == words.lower() and not set(words) & set('.!"()*#:;~,')
    assert len(words.split()) <= 50


@given(seed=SEEDS)
def test_answers_are_true(seed: int) -> None:
    rng = random.Random(seed)
    facts = world.sample_facts(rng)
    by_place = {text.PLACES[fact.position]: fact for fact in facts}
    by_color = {fact.color: fact for fact in facts}
    by_digit = {str(fact.digit): fact for fact in facts}
    for asked in text.ask_all(rng, facts):
        named = [by_place[p] for p in by_place if p in asked.question]
        named += [by_color[c] for c in by_color if f"{c}" in asked.question.rstrip("?.").split()]
        named += [by_digit[d] for d in by_digit if d in asked.question]
        truths = {
            "digit_at": lambda fact: str(fact.digit),
            "digit_of_color": lambda fact: str(fact.digit),
            "color_at": lambda fact: fact.color,
            "color_of": lambda fact: fact.color,
            "where_color": lambda fact: text.PLACES[fact.position],
            "where_digit": lambda fact: text.PLACES[fact.position],
            "exists": lambda fact: f"Yes, there is {text.phrase(fact)}.",
        }
        if asked.question_type == "count":
            assert asked.answer == text.COUNTS[len(facts)]
        elif asked.question_type == "exists" and not named:
            assert asked.answer.startswith("No, there is no ")
        else:
            assert [asked.answer] == [truths[asked.question_type](fact) for fact in named]


@given(seed=SEEDS)
def test_text_is_deterministic_and_types_are_all_asked(seed: int) -> None:
    facts = world.sample_facts(random.Random(seed))
    asked = text.ask_all(random.Random(seed), facts)
    assert asked == text.ask_all(random.Random(seed), facts)
    assert [question.question_type for question in asked] == list(text.QUESTION_TYPES)
    assert len(text.QUESTION_TYPES) == 8


def test_description_names_everything() -> None:
    facts = (world.Fact(7, "red", "left"), world.Fact(3, "blue", "middle"))
    assert text.description(facts) == (
        "The image shows two handwritten digits. There is a red 7 on the left. There is a blue 3 in the middle."
    )
    assert text.caption(facts) == "a red 7 on the left and a blue 3 in the middle"
