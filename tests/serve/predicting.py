"""Questions for `minigpt4 predict`, and its answers."""

import json
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "minigpt4" / "assets" / "tiny" / "examples"
SCENES = sorted(EXAMPLES.glob("*.jpg"))
DESCRIBE = "Describe this image in detail."
COUNT = "How many digits are there?"


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def write(file: Path, records: list) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file
