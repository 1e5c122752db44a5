"""What was measured as CSV, Markdown and a picture."""

import csv
from pathlib import Path

from minigpt4.tools.bench.measuring import Times
from minigpt4.tools.bench.published import IMAGE_MS, published

_OURS, _THEIRS = "here", "Ascend 910B3"
_COLUMNS = ("prompt", "new", "where", "response_ms", "first_token_ms", "ms_per_token", "tokens_per_s")
_HEAD = "| prompt / new tokens | | response, ms | first token, ms | each further, ms | tokens/s |\n"
_HEAD += "|---|---|---|---|---|---|\n"


def rows_of(times: list[Times]) -> list[tuple[str, Times]]:
    """(where, times): what was measured, each followed by the published row of its lengths."""
    found = []
    for own in times:
        found.append((_OURS, own))
        if theirs := published(own.prompt, own.new):
            found.append((_THEIRS, theirs))
    return found


def markdown(about: dict[str, str], times: list[Times], images: dict[str, float | str]) -> str:
    """A page: what it was measured on, answers, images."""
    lines = [f"- {key}: {value}" for key, value in about.items()]
    text = "\n".join(lines) + "\n\n" + _HEAD
    for where, own in rows_of(times):
        figures = (own.response, own.first, own.further, own.tokens_per_s)
        text += f"| {own.prompt} / {own.new} | {where} | {' | '.join(f'{figure:.4g}' for figure in figures)} |\n"
    if images:
        text += "\n| an image, ms | |\n|---|---|\n"
        for way, ms in images.items():
            text += f"| {way} | {ms if isinstance(ms, str) else f'{ms:.4g}'} |\n"
        text += "".join(f"| published, {where} | {ms:.4g} |\n" for where, ms in IMAGE_MS.items())
    return text


def write_csv(file: Path, times: list[Times], images: dict[str, float | str]) -> None:
    """A line for each row of answers; those of images have their way as `where`, and their time as the response."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for where, own in rows_of(times):
            figures = (own.response, own.first, own.further, own.tokens_per_s)
            writer.writerow([own.prompt, own.new, where, *(round(figure, 3) for figure in figures)])
        for way, ms in images.items():
            if not isinstance(ms, str):
                writer.writerow(["image", "", way, round(ms, 3), "", "", ""])


def draw(file: Path, title: str, times: list[Times]) -> None:
    """Bars of the time to the first token, and of each further one, beside the published ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    panels = {"first token, ms": "first", "each further token, ms": "further"}
    for axes, (label, key) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        names = [f"{own.prompt} / {own.new}" for own in times]
        theirs = [published(own.prompt, own.new) for own in times]
        axes.bar([i - 0.2 for i in range(len(times))], [getattr(own, key) for own in times], 0.4, label=_OURS)
        axes.bar(
            [i + 0.2 for i, own in enumerate(theirs) if own],
            [getattr(own, key) for own in theirs if own],
            0.4,
            label=f"{_THEIRS}, published",
        )
        axes.set_xticks(range(len(times)), names)
        axes.set_xlabel("prompt / new tokens")
        axes.set_title(label)
        axes.set_yscale("log")
        axes.legend()
    figure.savefig(file, dpi=120)
