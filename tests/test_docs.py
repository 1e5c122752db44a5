"""The documents: their links lead somewhere, and the commands and files that they show exist."""

import re
from pathlib import Path

import pytest

from minigpt4.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for pattern in ("*.md", "docs/*.md", "dataset/*.md", "minigpt4/**/*.md")
    for page in sorted(ROOT.glob(pattern))
}
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def code_of(text: str) -> str:
    """The blocks and spans of code of a page, one a line; a command that continues in the next line is joined."""
    text = re.sub(r"\\\n\s*", "", text)
    fenced = FENCED.findall(text)
    return "\n".join(fenced + re.findall(r"^ {4,}.*$|`[^`\n]+`", FENCED.sub("", text), re.MULTILINE))


CODE = {page: code_of(text) for page, text in PAGES.items()}


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", PAGES[page])):
        file, _, heading = link.partition("#")
        if not re.match(r"\w+:", link):  # another site's
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), link
            assert not heading or heading in anchors(target.read_text()), link


COMMANDS = {
    (words, option)
    for code in CODE.values()
    for words, rest in re.findall(
        r"\b(minigpt4(?: [a-z][a-z0-9-]*(?![\w./]))+|(?:train|evaluate|demo)\.py)\b([^\n;|]*)", code
    )
    for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest) or ["--help"]
}


@pytest.mark.parametrize(("words", "option"), sorted(COMMANDS))
def test_commands_and_options_exist(words, option, capsys):
    program, *arguments = words.split()
    if program != "minigpt4":  # a shim of the command of this name
        arguments = [program.removesuffix(".py")]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--help"])
    assert done.value.code == 0
    assert re.search(rf"{option}\b(?!-)", capsys.readouterr().out)


def test_targets_of_make_exist():
    shown = {target for code in CODE.values() for target in re.findall(r"\bmake ([a-z]+)", code)}
    assert {"install", "demo", "test"} <= shown
    assert shown <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_files_that_are_named_exist():
    pattern = re.compile(r"(?<![\w/])(?:(?:train|eval)_configs|benchmarks|docs|tests|minigpt4)/[\w/]+\.[a-z]+")
    named = {name for code in CODE.values() for name in pattern.findall(code)}
    named = {name for name in named if not re.search(r"/X\.|/my_|/test_my_", name)}  # what a reader is to write
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]
