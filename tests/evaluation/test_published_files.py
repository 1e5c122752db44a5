"""The original's own YAML, and every benchmark from its published files to a result, with the bundled model."""

import json
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.config.finding import TINY
from minigpt4.config.loading import load_config
from minigpt4.evaluation.benchmark import load_benchmark
from minigpt4.evaluation.evaluating import Evaluation
from minigpt4.inference.loading import load_engine
from tests.evaluation import DATA, VARIANTS, load

ORIGINAL = DATA.parent / "compat" / "final__eval_configs__minigptv2_benchmark_evaluation.yaml"
FILES = {
    "refcoco": DATA / "refcoco",
    "refcocog": DATA / "refcocog",
    "refcoco+": DATA / "refcoco+",
    "gqa": DATA / "gqa" / "testdev_balanced_questions.json",
    "okvqa": DATA / "okvqa",
    "vizwiz": DATA / "vizwiz" / "val.json",
    "iconvqa": DATA / "iconvqa" / "choose_text_val.json",
    "vsr": DATA / "vsr" / "test.jsonl",
    "hm": DATA / "hm" / "dev.jsonl",
}
OTHERS = {
    "vqav2": DATA / "vqav2",
    "textvqa": DATA / "textvqa" / "TextVQA_0.5.1_val.json",
    "aokvqa": VARIANTS / "aokvqa" / "aokvqa_v1p0_val.json",
    "pope": DATA / "pope",
    "mme": DATA / "mme",
    "scienceqa": DATA / "scienceqa",
    "seedbench": DATA / "seedbench" / "SEED-Bench.json",
    "mmbench": DATA / "mmbench" / "MMBench_DEV_EN.tsv",
}


@pytest.fixture(scope="module")
def engine():
    return load_engine(load_config(TINY))


def make_pictures(name: str, path: Path, folder: Path) -> None:
    for question in load(name, path, img_path=str(folder)).questions:
        for i, picture in enumerate(question.pictures):
            if isinstance(picture, Path) and not picture.exists():
                picture.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 24), (40 * i, 90, 0)).save(picture, "png")


@pytest.mark.slow
def test_the_originals_yaml_runs_unchanged(engine, tmp_path):
    """All of its nine benchmarks, six questions each; paths are filled in, and the model is the bundled one."""
    options = [f"run.save_path={tmp_path}/out", "run.num_workers=0"]
    for name, path in FILES.items():
        make_pictures(name, path, tmp_path / name)
        options += [f"evaluation_datasets.{name}.eval_file_path={path}"]
        options += [f"evaluation_datasets.{name}.img_path={tmp_path / name}", f"evaluation_datasets.{name}.limit=6"]
    config = load_config(ORIGINAL, options)
    tiny = load_config(TINY)
    config.model, config.preprocess = tiny.model, tiny.preprocess
    results = Evaluation.of(config).run(engine)
    assert results.keys() == FILES.keys()
    for name, own in results.items():
        manifest = json.loads((tmp_path / "out" / name / "manifest.json").read_text())
        assert manifest["scored"] == len(own["trained"].samples) > 0 and manifest["failed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_published_files_become_a_result(name, engine, tmp_path):
    make_pictures(name, OTHERS[name], tmp_path)
    options = [
        f"evaluation_datasets.{name}.{key}={value}"
        for key, value in {"eval_file_path": OTHERS[name], "img_path": tmp_path, "limit": 12, "batch_size": 4}.items()
    ]
    config = load_config(TINY, [*options, f"run.output_dir={tmp_path}/out", "run.num_workers=0"])
    scores = Evaluation.of(config, [name]).run(engine)[name]["trained"]
    ranked = load_benchmark(name, config.evaluation_datasets[name])
    lines = [json.loads(line) for line in (tmp_path / "out" / name / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == len(ranked.questions) <= 12 and scores.samples
    assert ["choice" in line for line in lines] == [ranked.ranked(question) for question in ranked.questions]
