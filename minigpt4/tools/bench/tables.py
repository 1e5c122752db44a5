"""What was measured as CSV, Markdown and a picture."""

import csv
from pathlib import Path

from minigpt4.tools.bench.measuring import Times
from minigpt4.tools.bench.published import IMAGE_MS, published

_OURS, _THEIRS = "here", "Ascend 910B3"
_COLUMNS = ("prompt", "new", "where", "response_ms", "first_token_ms", "ms_per_token", "tokens_per_s")
_PANELS = {
    "response, ms": "response",
    "first token, ms": "first",
    "each further token, ms": "further",
    "tokens/s": "tokens_per_s",
}
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
        text += f"| {own.prompt} / {own.new} | {where} | {' | '.join(_four(figure) for figure in figures)} |\n"
    if images:
        text += "\n| an image, ms | |\n|---|---|\n"
        for way, ms in images.items():
            text += f"| {way} | {ms if isinstance(ms, str) else _four(ms)} |\n"
        text += "".join(f"| published, {where} | {_four(ms)} |\n" for where, ms in IMAGE_MS.items())
    return text


def _four(figure: float) -> str:
    """With four digits that count, and never as 3.8e+04."""
    return f"{figure:.0f}" if figure >= 1000 else f"{figure:.4g}"


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
        for where, ms in IMAGE_MS.items() if images else ():
            writer.writerow(["image", "", f"{where}, published", ms, "", "", ""])


def draw(file: Path, title: str, times: list[Times], images: dict[str, float | str]) -> None:
    """Bars of each figure of the table, and of images, beside the published ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle(title)
    *axes, last, unused = figure.subplots(2, 3).flat
    unused.set_axis_off()
    for panel, (label, key) in zip(axes, _PANELS.items(), strict=True):
        theirs = [published(own.prompt, own.new) for own in times]
        panel.bar([i - 0.2 for i in range(len(times))], [getattr(own, key) for own in times], 0.4, label=_OURS)
        panel.bar(
            [i + 0.2 for i, own in enumerate(theirs) if own],
            [getattr(own, key) for own in theirs if own],
            0.4,
            label=f"{_THEIRS}, published",
        )
        panel.set_xticks(range(len(times)), [f"{own.prompt} / {own.new}" for own in times])
        panel.set(xlabel="prompt / new tokens", title=label, yscale="log")
        panel.legend()
    timed = {way: ms for way, ms in images.items() if not isinstance(ms, str)}
    last.bar(list(timed), list(timed.values()), 0.4)
    last.bar([f"{where},\npublished" for where in IMAGE_MS], list(IMAGE_MS.values()), 0.4)
    last.set(title="an image, ms", yscale="log")
    figure.savefig(file, dpi=120)
