"""What a visitor does in a real browser."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.waiting import LIMIT

expect.set_options(timeout=1000 * LIMIT)


def box(page: Page):
    return page.locator("#message textarea")


def attached(page: Page):
    return page.locator("#message .thumbnails img")


def words(page: Page, who: str):
    return page.locator(f'#chat [data-testid="{who}"] .message-content')


def send(page: Page, text: str, *files: Path) -> None:
    if files:
        page.locator("#message input[type=file]").set_input_files(files)
        expect(page.locator("#message .loader")).to_have_count(0)
    box(page).fill(text)
    page.get_by_test_id("submit-button").click()


def ask(page: Page, text: str, *files: Path) -> str:
    before = words(page, "bot").count()
    send(page, text, *files)
    expect(words(page, "bot")).to_have_count(before + 1)
    idle(page)
    expect(attached(page)).to_have_count(0)
    expect(box(page)).to_have_value("")
    return words(page, "bot").last.inner_text()


def idle(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("tokens used")
    expect(page.get_by_test_id("submit-button")).to_be_visible()


def load(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load", exact=True).click()
    chooser.value.set_files(file)


def complaint(page: Page, text: str) -> None:
    toast = page.locator(".toast-body").last
    expect(toast).to_contain_text(text)
    toast.locator(".toast-close").click()
    expect(page.locator(".toast-body")).to_have_count(0)
