"""What the tests of configs share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGE1 = ROOT / "train_configs" / "minigpt4_tiny_stage1_pretrain.yaml"
CONFIGS = sorted(ROOT.glob("train_configs/*.yaml")) + sorted(ROOT.glob("eval_configs/*.yaml"))
COMPAT = ROOT / "tests" / "fixtures" / "compat"  # the originals' files, unchanged


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path
