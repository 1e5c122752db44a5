"""Tasks and boxes on the page: a task's button, a box that is drawn, an answer's phrases in their boxes' colours."""

import re
from io import BytesIO

import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from minigpt4.config.schema import ModelConfig
from minigpt4.inference.boxes import in_pixels
from minigpt4.inference.sessions import Sessions
from minigpt4.serve.address import bind
from minigpt4.serve.web import server
from minigpt4.serve.web.handlers import Handlers
from minigpt4.serve.web.page import ASSETS, build_page
from minigpt4.serve.web.view import html_of
from tests.serve.browsing import attached, box, idle, send, words
from tests.waiting import LIMIT

# until all pictures are there the page's parts move
PICTURES_ARE_THERE = "() => [...document.images].every((image) => image.complete)"
SAID = "<p>red two</p> {<10><20><50><60>} and {<5><5><20><20>}"


@pytest.mark.parametrize(
    ("answer", "html"),
    [
        (SAID, 'COLOR">red two</span> and <span style="OTHER">{&lt;5&gt;&lt;5&gt;&lt;20&gt;&lt;20&gt;}</span>'),
        ("<p>a & b</p> {<0><0><9><9>}", 'COLOR">a &amp; b</span>'),
        ("<p>x</p> {<9><9><0><0>}", "&lt;p&gt;x&lt;/p&gt; {&lt;9&gt;&lt;9&gt;&lt;0&gt;&lt;0&gt;}"),  # no box
        ("no box", "no box"),
    ],
)
def test_phrases_have_the_colours_of_their_boxes(answer, html):
    shown = re.sub(r"border-bottom: 3px solid #\w+; font-weight: 600", "COLOR", html_of(answer), count=1)
    shown = re.sub(r"border-bottom: 3px solid #\w+; font-weight: 600", "OTHER", shown)
    assert shown == html.replace('COLOR">', '<span style="COLOR">')


@pytest.fixture(scope="module")
def grounding_url(page_engine, tmp_path_factory):
    """The page of a model that knows MiniGPT-v2's tasks, started in a folder that is not the examples'."""
    examples = sorted((ASSETS / "tiny_v2" / "examples").glob("*.jpg"))
    model = ModelConfig(arch="minigpt_v2", model_type="pretrain")
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tmp_path_factory.mktemp("elsewhere"))
        page = build_page(Handlers(Sessions(page_engine)), examples, model)
        server.launch(page, bind("127.0.0.1", 0), "127.0.0.1")
        yield page.local_url.rstrip("/")
        page.close()


@pytest.fixture(params=[(1280, 900), (390, 844)])
def page(request, browser: Browser, grounding_url) -> Page:
    context = browser.new_context(viewport=dict(zip(("width", "height"), request.param, strict=True)), has_touch=True)
    page = context.new_page()
    page.set_default_timeout(1000 * LIMIT)
    page.goto(grounding_url)
    expect(box(page)).to_be_enabled()
    expect(page.locator("#chat img")).to_be_attached()
    page.wait_for_function(PICTURES_ARE_THERE)
    yield page
    context.close()


def draw(page: Page, left: float, top: float, right: float, bottom: float) -> None:
    """Draws a box, given in parts of the picture's sides: with a finger on a narrow page, else with the mouse."""
    stage = page.locator("#box .stage")
    stage.scroll_into_view_if_needed()
    edges = stage.bounding_box()
    at = [
        (edges["x"] + x * edges["width"], edges["y"] + y * edges["height"]) for x, y in ((left, top), (right, bottom))
    ]
    if page.viewport_size["width"] < 500:
        screen = page.context.new_cdp_session(page)
        for kind, points in (("touchStart", at[:1]), ("touchMove", at[1:]), ("touchEnd", [])):
            touched = {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
            screen.send("Input.dispatchTouchEvent", touched)
        return
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=5)
    page.mouse.up()


@pytest.mark.browser
def test_a_box_is_drawn_and_asked_about_and_the_answers_boxes_are_shown(page, echo):
    echo.said = SAID
    expect(page.locator("#chat img[alt='an example']")).to_be_visible()
    draw(page, 0.1, 0.2, 0.5, 0.6)
    expect(box(page)).to_have_value("[identify] {<10><20><50><60>}")
    expect(page.locator("#message .thumbnails img")).to_have_count(1)  # the example, which the question is about
    page.wait_for_timeout(1000)
    assert page.locator("#box .stage i").evaluate("drawn => drawn.style.left") == "10%"
    draw(page, 0.5, 0.5, 1.0, 1.0)  # another in its place
    expect(box(page)).to_have_value("[identify] {<50><50><100><100>}")
    box(page).press_sequentially(" please")  # the drawn box stays while words are typed
    page.wait_for_timeout(1000)
    assert page.locator("#box .stage i").evaluate("drawn => drawn.style.left") == "50%"
    draw(page, 0.2, 0.2, 0.2, 0.2)  # no box: the words stay, and what was drawn goes
    expect(page.locator("#box .stage i")).to_be_hidden()
    page.get_by_test_id("submit-button").click()
    idle(page)
    expect(words(page, "user").last).to_contain_text("[identify] {<50><50><100><100>} please")
    expect(words(page, "bot").last.locator("span[style*=border]").first).to_have_text("red two")
    expect(page.locator("#chat .bot img")).to_have_count(1)  # the picture with the boxes
    expect(page.locator("#box .stage img")).to_have_attribute("src", re.compile("gradio_api/file="))
    assert echo.ended == ["stop"] and words(page, "bot").last.inner_text() == "red two and {<5><5><20><20>}"


@pytest.mark.browser
def test_a_box_is_added_to_words_and_drawn_by_keys(page):
    box(page).fill("what is it in")
    stage = page.locator("#box .stage")
    stage.focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Enter"):
        stage.press(key)
    expect(box(page)).to_have_value("what is it in {<20><30><75><80>}")
    drawn = stage.locator("i").evaluate("({ style }) => [style.left, style.top, style.width, style.height]")
    assert drawn == ["20%", "30%", "55%", "50%"]


@pytest.mark.browser
@pytest.mark.parametrize("typed", ["", "[refer] "])
def test_a_box_with_nothing_but_a_task_is_to_be_identified(page, typed):
    box(page).fill(typed)
    draw(page, 0.1, 0.2, 0.5, 0.6)
    expect(attached(page)).to_have_count(1)  # the example
    assert box(page).input_value() == "[identify] {<10><20><50><60>}"


@pytest.mark.browser
def test_a_box_that_is_given_up_goes_away(page):
    stage = page.locator("#box .stage")
    stage.hover(position={"x": 20, "y": 20})
    page.mouse.down()
    stage.hover(position={"x": 60, "y": 60})
    expect(stage.locator("i")).to_be_visible()
    stage.dispatch_event("pointercancel")
    page.mouse.up()
    expect(stage.locator("i")).to_be_hidden()
    assert box(page).input_value() == "" and stage.get_attribute("data-box") is None


@pytest.mark.browser
def test_boxes_are_drawn_on_the_last_of_several_pictures_alone(page, echo, picture):
    send(page, "what are these?", picture("red", (400, 200)), picture("blue", (200, 300)))
    idle(page)
    shown = page.locator("#box .stage img")
    expect(shown).to_have_attribute("src", re.compile("gradio_api/file=.*webp"))
    expect(shown).to_have_js_property("complete", True)
    assert shown.bounding_box()["width"] / shown.bounding_box()["height"] == pytest.approx(200 / 300, abs=0.01)
    shown.scroll_into_view_if_needed()
    seen = Image.open(BytesIO(shown.screenshot())).convert("RGB").reduce(4)
    assert all(blue > 200 and red < 50 for red, _, blue in seen.crop((1, 1, seen.width - 1, seen.height - 1)).getdata())


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phrases_are_in_the_colour_of_the_text(page, echo, scheme):
    echo.said = SAID
    page.goto(f"{page.url}?__theme={scheme}")
    send(page, "[grounding] what is there?")
    idle(page)
    answer = words(page, "bot").last
    colors = [
        answer.locator(part).first.evaluate("shown => getComputedStyle(shown).color")
        for part in ("p, .md", "span[style]")
    ]
    assert colors[0] == colors[1]


@pytest.mark.browser
def test_without_an_example_a_question_waits_for_a_picture(browser, page_engine, echo, picture):
    model = ModelConfig(arch="minigpt_v2", model_type="pretrain")
    blocks = build_page(Handlers(Sessions(page_engine)), [], model)
    server.launch(blocks, bind("127.0.0.1", 0), "127.0.0.1")
    page = browser.new_page()
    page.goto(blocks.local_url)
    expect(page.locator("#box")).to_contain_text("Show a picture first.")
    expect(page.locator("#box .stage")).to_be_hidden()
    page.get_by_text("[refer] the largest object", exact=True).click()
    expect(page.get_by_text("Show a picture first, then send this question")).to_be_visible()
    expect(box(page)).to_have_value("[refer] the largest object")
    expect(box(page)).to_be_focused()
    page.locator("#message input[type=file]").set_input_files(picture("green"))
    expect(attached(page)).to_have_count(1)
    expect(page.locator("#box .stage")).to_be_visible()
    page.get_by_test_id("submit-button").click()
    idle(page)
    assert words(page, "bot").last.inner_text().startswith("[refer] the largest object 1 ")
    page.close()
    blocks.close()


@pytest.mark.parametrize("question", yaml.safe_load((ASSETS / "guides.yaml").read_text())["tiny_v2"]["questions"])
def test_a_question_about_a_box_means_a_digit_of_the_example(question):
    picture = Image.open(ASSETS / "tiny_v2" / "examples" / "scene1.jpg").convert("L")
    for found in in_pixels(question, picture.size):
        assert picture.crop(found["box"]).getextrema()[1] > 100


@pytest.mark.browser
def test_buttons_put_the_task_before_the_question(page, echo):
    for task in ("vqa", "caption", "grounding", "refer", "identify", "detection"):
        box(page).fill(box(page).input_value() or "a dog")
        page.get_by_role("button", name=f"[{task}]", exact=True).click()
        expect(box(page)).to_have_value(f"[{task}] a dog")
    send(page, box(page).input_value())
    idle(page)
    assert words(page, "bot").last.inner_text() == "[detection] a dog no picture"


@pytest.mark.browser
def test_a_tap_on_a_question_asks_it_about_the_example(page, echo):
    page.get_by_text("[refer] the largest object", exact=True).click()
    idle(page)
    expect(words(page, "user").last).to_have_text("[refer] the largest object")
    expect(page.locator("#chat .user img")).to_have_count(1)
    page.get_by_text("[detection] people", exact=True).click()  # of the same picture: it is not shown again
    expect(words(page, "bot")).to_have_count(2)
    idle(page)
    expect(page.locator("#chat .user img")).to_have_count(1)
    first, second = words(page, "bot").all_inner_texts()
    assert first.startswith("[refer] the largest object 1 ") and second.startswith("[detection] people 1 ")
