"""Where the files that come with the package lie."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ASSETS = PACKAGE / "assets"
TINY_LLM = ASSETS / "tiny" / "llm"  # the bundled language model with its tokenizer
