"""The page in a real browser: what gradio_client cannot see."""

import base64
import json
import math
import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serve.browsing import ask, attached, box, complaint, idle, load, send, words
from tests.waiting import LIMIT, wait_for

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)> <b>bold</b> **strong** ![i](http://x.invalid/y.png) <script>alert(2)</script>"
DROP = """(target, data) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], "red.png", { type: "image/png" }));
    target.dispatchEvent(EVENT);
}"""
DROPPED = DROP.replace("EVENT", 'new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })')
SOON = """new MutationObserver((_, page) => {
    if (!document.querySelector("#message textarea")) return;
    page.disconnect();
    DROPPED(document.querySelector("#chat"), DATA);
}).observe(document, { childList: true, subtree: true })"""
PASTED = DROP.replace("EVENT", 'new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true })')
BLUE = [0, 0, 255]
COLOR_AT = """(image, [x, y]) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data].slice(0, 3);
}"""


@pytest.fixture
def open_page(browser: Browser, url):
    """Opens the page in a window of its own; in the end, none may have failed or asked another host."""
    contexts, troubles = [], []

    def open_page(width: int = 1366, height: int = 768, script: str = "") -> Page:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.add_init_script(script)
        page.set_default_timeout(1000 * LIMIT)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: other_host(request.url) and troubles.append(request.url))
        page.goto(url)
        expect(box(page)).to_be_enabled()
        return page

    def other_host(address: str) -> bool:
        return not address.startswith((url, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def test_ask_twice_about_a_picture_then_restart(open_page, echo, picture):
    page = open_page()
    assert ask(page, "one", picture("red")).startswith("one 1 ")
    assert ask(page, "two").startswith("two 1 ")
    expect(page.locator("#chat .user img")).to_have_count(1)
    page.get_by_role("button", name="Restart").click()
    expect(words(page, "bot")).to_have_count(0)
    assert ask(page, "three") == "three no picture"


def test_stop(open_page, echo):
    page = open_page()
    echo.go.clear()
    echo.said = "word " * 200
    send(page, "Talk!")
    expect(words(page, "bot")).to_contain_text("word word")
    page.get_by_label("Stop").click()
    expect(page.locator("#status")).to_contain_text("stopped")
    assert echo.ended == ["interrupt"]


def test_a_question_that_waits_can_be_stopped(open_page, echo):
    others, page = [open_page(), open_page()], open_page()
    echo.go.clear()
    echo.said = "word " * 200
    for other in others:
        send(other, "Talk!")
        expect(words(other, "bot")).to_contain_text("word word")
    echo.said = None
    send(page, "never asked")
    expect(page.locator("#status")).to_contain_text("Waiting for 1 other answer")
    page.get_by_label("Stop").click()
    expect(page.get_by_test_id("submit-button")).to_be_visible()
    assert box(page).input_value() == "never asked"
    for other in others:
        other.get_by_label("Stop").click()
        idle(other)
    assert ask(page, "two") == "two no picture"
    assert len(echo.options) == 3


def test_a_closed_window_ends_its_answer(open_page, echo):
    page, other = open_page(), open_page()
    echo.seconds, echo.said = 0.05, "word " * 10_000  # it continues: what is sent shows that nobody is there
    send(page, "Talk!")
    expect(words(page, "bot")).to_contain_text("word word")
    page.close()
    wait_for(lambda: other.wait_for_timeout(50) or echo.ended)  # the other window keeps the browser running
    assert echo.ended == ["interrupt"]


def test_two_windows_at_once(open_page, echo, picture):
    laptop, phone = open_page(), open_page(390, 844)
    echo.seconds = 0.1
    send(laptop, "from the laptop", picture("red"))
    send(phone, "from the phone", picture("blue"), picture("green"))
    for page in (laptop, phone):
        idle(page)
    assert words(laptop, "bot").all_inner_texts()[0].startswith("from the laptop 1 ")
    assert words(phone, "bot").all_inner_texts()[0].startswith("from the phone 2 ")
    assert words(laptop, "user").all_inner_texts() == ["from the laptop"]
    assert words(phone, "user").all_inner_texts() == ["from the phone"]
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out


def test_edit_regenerate_and_undo(open_page, echo, picture):
    page = open_page()
    ask(page, "one <b> & &amp;", picture("red"))
    ask(page, "two")
    echo.said = "again"
    page.get_by_role("button", name="Retry").click()
    expect(words(page, "bot").last).to_have_text("again")
    echo.said = None
    page.get_by_role("button", name="Undo").click()
    expect(words(page, "bot")).to_have_count(1)
    expect(box(page)).to_have_value("two")
    page.get_by_role("button", name="Edit").click()
    expect(page.locator("#chat textarea")).to_have_value("one &lt;b> & &amp;amp;")
    page.locator("#chat textarea").fill("uno")
    page.locator("#chat").get_by_label("Submit").click()
    expect(words(page, "bot")).to_contain_text(["uno 1 "])
    idle(page)
    page.get_by_role("button", name="Undo").click()
    expect(words(page, "bot")).to_have_count(0)
    expect(attached(page)).to_have_count(1)
    assert box(page).input_value() == "uno"


def test_save_and_load(open_page, echo, picture, tmp_path):
    page, other = open_page(), open_page()
    ask(page, "one", picture("red"))
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "conversation.json"
    download.value.save_as(tmp_path / "saved.json")
    for _ in range(2):  # the same file again, too
        load(other, tmp_path / "saved.json")
        expect(words(other, "user")).to_have_text(["one"])
        expect(other.locator("#chat .user img")).to_have_count(1)
        assert ask(other, "two").startswith("two 1 ")


def test_bad_files_are_reported_in_words(open_page, echo, bad_files, tmp_path):
    page, hostile = open_page(), "<img src=//evil.invalid/a>"
    (tmp_path / "bad.json").write_text(json.dumps({"version": 1, "turns": [], "pictures": [hostile]}))
    ask(page, "Who?")
    load(page, tmp_path / "bad.json")
    complaint(page, hostile)
    expect(page.locator("#chat .error")).to_have_count(0)  # it would cover what was said
    expect(words(page, "user")).to_be_visible()
    restart = page.get_by_role("button", name="Restart")
    restart.click()
    expect(words(page, "user")).to_have_count(0)
    for file, message in bad_files.items():
        send(page, "What is it?", file)
        complaint(page, message)
        assert box(page).input_value() == "What is it?"
        page.locator("#message").get_by_label("Remove").first.click()
    for name, size, message in (("huge.png", 200_000_000, "exceed the maximum"), ("notes.txt", 9, "Invalid file type")):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        page.locator("#message input[type=file]").set_input_files(tmp_path / name)
        complaint(page, message)
    assert ask(page, "And now?") == "And now? no picture"


def test_an_error_covers_no_button_and_nothing_sticks_out(open_page, echo, picture):
    for width, height in ((1280, 720), (390, 844)):
        page = open_page(width, height)
        send(page, " ", picture("red"))
        toast = page.get_by_test_id("toast-body")
        expect(toast).to_contain_text("The question is empty")
        page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished))")  # it flies in
        around = toast.bounding_box()
        assert around["x"] >= 12 and around["x"] + around["width"] <= width - 12
        for name in ("Restart", "Save", "Load"):
            button = page.get_by_role("button", name=name, exact=True).bounding_box()
            assert button["x"] > around["x"] + around["width"] or button["y"] > around["y"] + around["height"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width > height:
            assert page.evaluate("document.documentElement.scrollHeight") <= height


def test_no_html_of_anybody_is_live(open_page, echo):
    page = open_page()
    echo.said = HOSTILE
    ask(page, HOSTILE)
    assert words(page, "user").inner_text() == HOSTILE
    assert "<b>bold</b> strong" in words(page, "bot").inner_text()
    expect(page.locator("#chat .message-content strong")).to_have_count(1)
    expect(page.locator("#chat .message-content :is(img, script, b)")).to_have_count(0)


def test_ways_to_show_a_picture(open_page, echo, picture):
    page, data = open_page(), base64.b64encode(picture("red").read_bytes()).decode()
    page.locator("#chat").evaluate(DROPPED, data)  # beside the box
    expect(attached(page)).to_have_count(1)
    page.locator("#message .full-container").evaluate(DROPPED, data)
    expect(attached(page)).to_have_count(2)
    box(page).evaluate(PASTED, data)
    expect(attached(page)).to_have_count(3)
    page.locator("#examples .gallery-item").click()
    expect(attached(page)).to_have_count(4)
    page.get_by_text("Take a picture").click()
    page.locator("#camera").get_by_role("button").first.click()
    page.wait_for_function("document.querySelector('#camera video').videoWidth > 0")
    page.get_by_label("capture photo").click()
    expect(attached(page)).to_have_count(5)
    page.get_by_role("button", name="Describe this image in detail.").click()
    expect(box(page)).to_have_value("Describe this image in detail.")
    box(page).press("Enter")
    expect(words(page, "bot")).to_have_text(re.compile(r"in detail\. 5 "))
    assert words(page, "bot").count() == 1


def test_a_picture_may_be_dropped_as_soon_as_the_page_is_there(open_page, picture):
    data = base64.b64encode(picture("red").read_bytes()).decode()
    page = open_page(script=SOON.replace("DROPPED", f"({DROPPED})").replace("DATA", json.dumps(data)))
    attached(page).wait_for()
    assert page.title() == "MiniGPT-4" and attached(page).count() == 1  # the browser did not open the file instead


def test_boxes_are_shown(open_page, echo, picture):
    page = open_page()
    echo.said = "<p>it</p> {<20><20><60><60>}"
    ask(page, "[detection] it", picture("blue"))
    expect(page.locator("#chat .bot img")).to_have_count(1)
    drawn = page.locator("#chat .bot img")
    page.wait_for_function("document.querySelector('#chat .bot img').naturalWidth > 0")  # it is loaded
    edge, middle = (drawn.evaluate(COLOR_AT, place) for place in ([0.2, 0.4], [0.4, 0.4]))
    assert math.dist(middle, BLUE) < 9  # within the box; the picture comes compressed
    assert math.dist(edge, BLUE) > 99  # on the box's left side


def test_switch_shows_what_it_needs(open_page, echo):
    page = open_page()
    for mode, shown in (("Sample", "Temperature"), ("Beams", "Length penalty"), ("Greedy", "Repetition penalty")):
        page.get_by_text(mode, exact=True).click()
        for label, of in (
            ("Temperature", "Sample"),
            ("Top-p", "Sample"),
            ("Seed", "Sample"),
            ("Length penalty", "Beams"),
        ):
            expect(page.get_by_text(label, exact=True)).to_have_count(int(of == mode))
        expect(page.get_by_text(shown, exact=True)).to_be_visible()
        assert page.get_by_text("Seed", exact=True).count() == (mode == "Sample")
