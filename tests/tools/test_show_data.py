"""`minigpt4 show-data`: what training would see of each data set, and what it learns."""

import json
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.tiny.data import write_all

DATA = Path(__file__).parents[1] / "fixtures" / "minigptv2" / "data"
GQA = [f"datasets.gqa.build_info.storage={DATA}/gqa/train_balanced_questions.json"]
GQA += [f"datasets.gqa.build_info.images={DATA}/gqa/images", "datasets.gqa.vis_processor.train.name=blip2_image_train"]
GQA += ["datasets.gqa.text_processor.train.name=blip_caption"]


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_all(folder, 0, scale=0.01)
    return folder


@pytest.fixture
def shown(minigpt4):
    """The lines that the command prints as JSON."""

    def run(config: str, *arguments) -> list[dict]:
        code, out, err = minigpt4("show-data", "--cfg-path", config, "--json", *arguments)
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return run


@pytest.mark.slow
def test_shards_and_descriptions(shown, tiny_data):
    options = ("--options", f"datasets.cc_sbu.build_info.storage={tiny_data}/stage1")
    first, *_ = lines = shown("minigpt4_tiny_stage1_pretrain", "--limit", "4", *options)
    assert len(lines) == 4 and first["dataset"] == "cc_sbu" and first["pictures"] == [[3, 112, 112]]
    assert [piece["learned"] for piece in first["pieces"]] == [False, False, True]
    assert "[32 image rows]" in first["prompt"] and first["answer"] == first["pieces"][2]["text"]
    assert first["pieces"][1] == {"image_rows": 32, "tokens": 32, "learned": False}
    assert first["tokens"] == sum(piece["tokens"] for piece in first["pieces"])
    assert first["learned"] == first["pieces"][2]["tokens"] and first["pieces"][2]["text"].startswith("a ")

    options = ("--options", f"datasets.cc_sbu_align.build_info.storage={tiny_data}/stage2")
    lines = shown("minigpt4_tiny_stage2_finetune", "--limit", "2", *options)
    assert all(Path(line["files"][0]).is_file() and line["pieces"][-1]["text"].endswith("###") for line in lines)


@pytest.mark.slow
def test_a_seed_shows_the_same_again_and_another_others(shown):
    def questions(seed: int) -> list[str]:
        found = shown(
            "minigpt4_tiny_stage2_finetune", "--dataset", "gqa", "--seed", seed, "--limit", 8, "--options", *GQA
        )
        return [line["pieces"][2]["text"] for line in found]

    assert questions(1) == questions(1) != questions(2)


@pytest.mark.slow
def test_in_words(minigpt4):
    arguments = ("--dataset", "gqa", "--limit", 1, "--options", *GQA)
    code, out, _ = minigpt4("show-data", "--cfg-path", "minigpt4_tiny_stage2_finetune", *arguments)
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("gqa, sample ") and "gqa/images" in lines[1] and "112 x 112" in lines[1]
    assert " pixels, seen as 112 x 112" in lines[1]
    assert "[32 image rows]" in lines[2] and lines[2].startswith("  prompt (not learned): ") and "[vqa]" in lines[2]
    assert lines[3].startswith("  answer (learned): ") and lines[4].endswith("are learned")


@pytest.mark.slow
def test_what_cannot_be_used_says_why(shown, tmp_path):
    rows = json.loads((DATA / "gqa" / "train_balanced_questions.json").read_text())[:2]
    del rows[0]["answer"]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    options = [*GQA, f"datasets.gqa.build_info.storage={tmp_path}/own.json"]
    found = shown("minigpt4_tiny_stage2_finetune", "--dataset", "gqa", "--options", *options)
    assert sorted("skipped" in line for line in found) == [False, True]
    assert any("own.json: sample 0: key 'answer' is missing" in line.get("skipped", "") for line in found)


@pytest.mark.slow
def test_answers_are_refused_and_cut_as_in_training(shown, tmp_path):
    (row, *_) = json.loads((DATA / "gqa" / "train_balanced_questions.json").read_text())
    answers = [[".", ""], "a long answer that goes on", 7]
    (tmp_path / "own.json").write_text(json.dumps([row | {"answer": answer} for answer in answers]))
    options = [*GQA, f"datasets.gqa.build_info.storage={tmp_path}/own.json", "model.max_txt_len=3"]
    lines = shown("minigpt4_tiny_stage2_finetune", "--dataset", "gqa", "--options", *options)
    empty, long, number = sorted(lines, key=lambda line: line["sample"])
    assert empty["skipped"] == "its answer is empty" and empty["sizes"]
    assert "key 'answer' is 7; expected" in number["skipped"]
    assert long["cut"] > 0 and long["learned"] == 3 and "a long answer".startswith(long["answer"])
    (learned,) = (piece for piece in long["pieces"] if piece["learned"])
    assert len(learned["ids"]) == len(learned["vocabulary"]) == 3


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_a_block_with_a_format(shown, minigpt4, tmp_path):
    rows = [{"image": "1.jpg", "question": "What is it?", "answer": ["a shoe"]}]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    Image.new("RGB", (30, 20)).save(tmp_path / "1.jpg")
    own = {"format": "vqa", "build_info": {"storage": str(tmp_path / "own.json"), "images": str(tmp_path)}}
    own["instructions"] = ["[vqa] {}"]
    config = {"model": {"model_type": "tiny"}, "datasets": {"my_shop": own}, "run": {"task": "image_text_pretrain"}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    (line,) = shown(str(tmp_path / "run.yaml"))
    assert line["dataset"] == "my_shop" and "[vqa] " in line["prompt"] and line["answer"].startswith("a shoe")
    assert line["sizes"] == [[30, 20]]
    code, _, err = minigpt4(
        "show-data", "--cfg-path", tmp_path / "run.yaml", "--options", "datasets.my_shop.format=vqaa"
    )
    assert code == 2 and "datasets.my_shop.format: " in err and "Did you mean 'vqa'?" in err


def test_a_data_set_that_is_not_there(minigpt4):
    arguments = ("--cfg-path", "minigpt4_tiny_stage2_finetune", "--dataset", "cc_sbu_aling")
    code, _, err = minigpt4("show-data", *arguments)
    assert code == 2 and "--dataset: 'cc_sbu_aling' is not in the config. Did you mean 'cc_sbu_align'?" in err
