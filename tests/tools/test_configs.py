"""`minigpt4 configs`."""

from pathlib import Path

from minigpt4.config.finding import run_configs
from tests.config.test_loading import ROOT


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_each_config_is_listed_with_what_it_is_for(minigpt4):
    code, out, _ = minigpt4("configs")
    assert code == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows.keys() == run_configs().keys()
    assert rows["minigpt4_tiny_eval"] == "The demo with the bundled tiny model."
    assert all(about.endswith(".") for about in rows.values())  # a whole sentence


def test_copies_come_with_their_prompts_and_replace_nothing(minigpt4, tmp_path):
    target = tmp_path / "mine"
    assert minigpt4("configs", "--copy", target)[0] == 0
    ours = {name: (ROOT / name).read_bytes() for name in files(target)}
    assert files(target) == ours
    assert {"prompts/alignment.txt", "eval_configs/minigpt4_tiny_eval.yaml"} < ours.keys()
    assert len(ours) == 1 + len(run_configs())
    assert minigpt4("configs", "--copy", target)[0] == 0  # all there already

    changed = target / "train_configs" / "minigpt4_stage1_pretrain.yaml"
    changed.write_text("run: {seed: 1}")
    (target / "eval_configs" / "minigpt4_eval.yaml").unlink()
    code, _, err = minigpt4("configs", "--copy", target)
    assert code == 2
    assert err == f"error: --copy: '{changed}' is there already, and differs. Name another folder, or move it.\n"
    assert changed.read_text() == "run: {seed: 1}" and not (target / "eval_configs" / "minigpt4_eval.yaml").exists()


def test_a_folder_that_can_not_be_written_is_reported(minigpt4, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = minigpt4("configs", "--copy", tmp_path / "file")
    assert code == 2 and err.startswith("error: --copy: ") and err.count("\n") == 1
