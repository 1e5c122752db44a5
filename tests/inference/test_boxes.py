"""Boxes of MiniGPT-v2's answers: found in text, drawn where they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.inference.boxes import Box, draw_boxes, find_boxes, in_pixels, in_task


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        ("{<10><20><30><40>}", [Box("", 10, 20, 30, 40)]),
        ("<p>a man</p> {<0><0><100><100>} sits", [Box("a man", 0, 0, 100, 100)]),
        (
            "<p>dogs</p> {<1><2><3><4>}<delim>{<5><6><7><8>} and <p>a cat</p> {<9><9><10><11>}",
            [Box("dogs", 1, 2, 3, 4), Box("dogs", 5, 6, 7, 8), Box("a cat", 9, 9, 10, 11)],
        ),
        ("<p>far</p> away {<1><2><3><4>}", [Box("", 1, 2, 3, 4)]),
        ("{<1><2><3>} {<30><2><3><4>} {<1><20><3><4>} {1 2 3 4}", []),
        ("{<10><20><123><60>} {<-2><0><50><598>}", [Box("", 10, 20, 100, 60), Box("", 0, 0, 50, 100)]),
        ("{<5><5><5><5>} {<2><3><-10><-13>} {<101><2><130><9>} {<2500000000><2><2500000000><3>}", []),
        ("a red 7", []),
    ],
)
def test_boxes_of_an_answer(answer, boxes):
    assert find_boxes(answer) == boxes


@given(st.text(alphabet="{}<>-0123456789p/delim ", max_size=200))
def test_any_text_has_boxes_within_the_picture(answer):
    for box in find_boxes(answer):
        assert 0 <= box.left < box.right <= 100 and 0 <= box.top < box.bottom <= 100


def test_a_box_is_drawn_where_it_is_said_to_be():
    image = Image.new("RGB", (401, 201))
    drawn = draw_boxes(image, [Box("", 25, 50, 75, 100)])
    assert drawn.getbbox() == (100, 100, 301, 201)
    assert image.getbbox() is None  # the original is as it was


@pytest.mark.slow
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.lists(st.integers(0, 100), min_size=4, max_size=4).map(sorted),
    st.text(max_size=40),
)
def test_any_box_on_any_picture(size, edges, label):
    left, top, right, bottom = edges
    assert draw_boxes(Image.new("RGB", size), [Box(label, left, top, right, bottom)]).getbbox() is not None


def test_one_label_has_one_color():
    boxes = [Box("dog", 10, 50, 20, 60), Box("dog", 40, 50, 50, 60), Box("cat", 70, 50, 80, 60)]
    drawn = draw_boxes(Image.new("RGB", (401, 401)), boxes)
    first, second, third = (drawn.getpixel((box.left * 4, box.bottom * 4)) for box in boxes)
    assert first == second != third


def test_boxes_in_pixels():
    answer = "<p>dogs</p> {<1><2><3><4>}<delim>{<50><6><100><100>} and {<0><0><1><1>}"
    assert in_pixels(answer, (200, 50)) == [
        {"phrase": "dogs", "box": [2, 1, 6, 2]},
        {"phrase": "dogs", "box": [100, 3, 200, 50]},
        {"phrase": "", "box": [0, 0, 2, 0]},
    ]
    assert in_pixels("no box", (9, 9)) == []


def test_a_task_stands_before_a_question_once():
    assert in_task("refer", "the dog") == "[refer] the dog" == in_task("refer", " [vqa]  the dog")
    assert in_task("", "[identify] it") == "it" and in_task("vqa", "[other] it") == "[vqa] [other] it"
