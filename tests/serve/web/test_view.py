"""Messages on the page: which words and pictures, and that no HTML is live."""

import html
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.conversation.conversation import Turn
from minigpt4.inference.pictures import Picture
from minigpt4.serve.web import view as view_module
from minigpt4.serve.web.view import View, typed

PLAIN = {"p", "br", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "a"}
PLAIN |= {"h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = st.lists(
    st.sampled_from(
        ["<", ">", "!", "[", "]", "(", ")", "`", "```", "~~~", "\n", "    ", "- ", "&lt;", "&#60;", "\\", "x", '"', "|"]
        + [
            "<img src=http://x onerror=alert(1)>",
            "<script>alert(1)</script>",
            "javascript:alert(1)",
            "http://x",
            "<!--",
        ]
    ),
    max_size=30,
).map("".join)


class Tags(HTMLParser):
    """Collects the tags and addresses that a browser would see."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [str(value) for name, value in attrs if name == "href"]
        assert {name for name, _ in attrs} <= {"href", "title", "class", "start", "style"}

    def handle_comment(self, data):
        self.tags.add("comment")

    def handle_decl(self, decl):
        self.tags.add("declaration")

    def handle_pi(self, data):
        self.tags.add("instruction")

    def handle_data(self, data):
        self.text += data


def said(turns: list[Turn]) -> list[str]:
    return [message["content"][-1] for message in View().messages(turns)]


@pytest.mark.slow
@given(HOSTILE, HOSTILE)
def test_no_html_is_live(question, answer):
    shown_question, shown_answer = said([Turn([question], answer)])
    assert not Tags(shown_question).tags
    tags = Tags(shown_answer)
    assert tags.tags <= PLAIN
    assert not [a for a in tags.addresses if html.unescape(a).lower().startswith(("javascript:", "data:", "vbscript:"))]


@given(st.text(alphabet="<>&;#abltgmp/!? \n1", max_size=60))
def test_a_question_is_shown_as_it_was_typed_and_can_be_edited(question):
    (shown, _) = said([Turn([question], "yes")])
    assert Tags(shown).text.split() == question.split()
    assert typed(shown).split() == question.split()


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("red", "red"),
        ("3 < 4 & 5", "3 &lt; 4 &amp; 5"),
        ("**red** `<b>`", "<strong>red</strong> <code>&lt;b&gt;</code>"),
        ("one\ntwo", "one<br>\ntwo"),
        ("one\n\ntwo", "<p>one</p>\n<p>two</p>"),
        ("- one", "<ul>\n<li>one</li>\n</ul>"),
        ("![cat](http://x/y.png)", '!<a href="http://x/y.png">cat</a>'),
        ("", "(The model ended its answer without a word.)"),
    ],
)
def test_answers_are_markdown(answer, shown):
    assert said([Turn(["?"], answer)])[1] == shown


def test_pictures_since_the_last_question_come_with_the_next_on_one_sheet():
    red, blue = (Picture(Image.new("RGB", (40, 30), color)) for color in ("red", "blue"))
    turns = [Turn([red]), Turn([blue, " first?"], "one"), Turn(["second?"], "two")]
    messages = View().messages(turns)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    sheet, words = messages[0]["content"]
    assert words == "first?" and messages[2]["content"] == ["second?"]
    with Image.open(sheet["path"]) as image:
        assert image.getpixel((100, 112))[0] > 200 and image.getpixel((324, 112))[2] > 200


@pytest.mark.parametrize("sizes", [[(1, 5000)], [(5000, 1)], [(1, 1)], [(1, 5000), (5000, 1)] * 3])
def test_a_picture_of_any_shape_is_shown(sizes):
    pictures = [Picture(Image.new("RGB", size, "red")) for size in sizes]
    turns = [Turn(pictures, "{<0><0><100><100>}")]
    for message in View().messages(turns):
        with Image.open(message["content"][0]["path"]) as image:
            assert 640 <= max(image.size) <= 4 * 224


def test_boxes_are_drawn_on_the_last_picture_and_only_once(monkeypatch):
    view, picture = View(), Picture(Image.new("RGB", (100, 100)))
    turns = [Turn([picture, " where?"], "there"), Turn(["really?"], "{<20><20><60><60>}")]
    growing = view.messages([*turns[:1], Turn(["really?"])], "{<20><20><60><60>}")
    assert len(growing[3]["content"]) == 1  # not while the answer grows
    drawn, words = view.messages(turns)[3]["content"]
    assert words.endswith(">{&lt;20&gt;&lt;20&gt;&lt;60&gt;&lt;60&gt;}</span>")
    with Image.open(drawn["path"]) as image:
        assert image.getbbox() is not None
    assert view.messages(turns)[3]["content"][0] == drawn
    Path(drawn["path"]).unlink()  # gradio removes old files
    assert Path(view.messages(turns)[3]["content"][0]["path"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 16, 17, 293, 6000])
def test_a_sheet_of_many_pictures_is_one_that_browsers_show(count):
    sheet, name = view_module.sheet([Image.new("RGB", (20, 10), "red")] * count)
    assert max(sheet.size) <= 4096 or count == 1
    assert sheet.getcolors(2)[0][1][:3] in ((255, 0, 0), (0, 0, 0))
    if count == 16:
        assert sheet.size == (896, 896) and name == "last-676-676-216-108"


def test_answers_are_rendered_once(monkeypatch):
    calls, render = [], view_module.html_of

    def note(answer: str) -> str:
        calls.append(answer)
        return render(answer)

    monkeypatch.setattr(view_module, "html_of", note)
    view, turns = View(), [Turn(["a"], f"**{i}**") for i in range(5)]
    first = view.messages(turns)
    assert view.messages([*turns, Turn(["b"])], "c")[:10] == first and calls == [f"**{i}**" for i in range(5)] + ["c"]


@pytest.mark.parametrize("answer", ["[" * 400, "**a** " * 2000])
def test_an_answer_that_would_take_long_to_render_is_shown_as_it_is(answer):
    assert View().messages([Turn(["a"], answer + "<b>")])[1]["content"][-1] == answer + "&lt;b&gt;"
