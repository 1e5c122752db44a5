"""No sample ends a run: wherever it is found out that one can't be used, it is skipped, counted and named."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.config.schema import BuildInfo, Config, DatasetConfig, ProcessorConfig, ProcessorsConfig, RunConfig
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.prompter import IGNORE, IMAGE_ROW, Prompter
from minigpt4.datasets.loading import LayOut, SkipCounter, build_valid_loader
from minigpt4.datasets.mixture import TrainBatches
from minigpt4.inference.loading import load_prompter
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import preflight
from minigpt4.runners.feature_cache import cached_datasets
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from tests.batches import instructed

ROOT = Path(__file__).parents[2]
HALF = "half a \ud83d"  # of an emoji
HALF_SAID = "a character of the text is only half there"
GOOD = [f"a dog {i}" for i in range(8)]


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_shards(folder: Path, shards: int, captions: list[str]) -> Path:
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i, caption in enumerate(captions):
                for name, data in {"jpg": jpeg(), "json": json.dumps({"caption": caption}).encode()}.items():
                    member = tarfile.TarInfo(f"{i:03d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def write_folder(folder: Path, annotations: list) -> Path:
    (folder / "image").mkdir(parents=True)
    (folder / "image" / "0.jpg").write_bytes(jpeg())
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return folder


def block(storage: Path) -> DatasetConfig:
    images, text = (
        ProcessorConfig("blip2_image_eval", image_size=56),
        ProcessorConfig("base_instruction", max_words=999),
    )
    info = BuildInfo(str(storage), str(storage))
    return DatasetConfig(info, ProcessorsConfig(images, images), ProcessorsConfig(text, text))


CAPTIONS = [*GOOD, HALF, "See <ImageHere>.", " ! "]
ANNOTATIONS = [
    *({"image_id": "0", "caption": caption} for caption in GOOD),
    {"image_id": "0", "caption": "x", "instruction": "What? " * 400},
    {"image_id": "0", "caption": "x", "instruction": f"Is this {HALF}?"},
    {"image_id": "0", "caption": "x", "instruction": "And <ImageHere>?"},
    {"image_id": "0", "caption": "See <ImageHere>."},
    {"image_id": "0", "caption": float("nan")},
    {"image_id": "0", "caption": "x", "instruction": ["What?"]},
    {"caption": "x"},
    "text",
]
RECORDS = [
    *(
        {"id": f"good{i}", "image": "0.jpg", "instruction": "What?", "output": caption}
        for i, caption in enumerate(GOOD)
    ),
    {"id": "long", "image": "0.jpg", "instruction": "What? " * 400, "output": "x"},
    {"id": "half", "image": "0.jpg", "instruction": "What?", "output": HALF},
    {"id": HALF, "image": "0.jpg", "instruction": "What?", "output": HALF},
    {"id": "cut", "image": "0.jpg", "instruction": ["Hm?", "<image> What?"], "output": ["word " * 40, "x"]},
    {"id": 7, "image": 3, "instruction": "What?", "output": "x"},
    ["no record"],
]
REASONS = {
    "laion": ["0.tar/008: " + HALF_SAID],
    "cc_sbu_align": [
        r"sample 8: 0: it has \d+ tokens, and the LLM reads 200 at once",
        f"sample 9: 0: {HALF_SAID}",
        "sample 12: 0: no caption",
        r"sample 13: 0: its instruction is not text: \['What\?'\]",
        "sample 14: no image_id",
        "sample 15: no image_id: 'text'",
    ],
    "instruction": [
        r"sample 8: long: it has \d+ tokens",
        "sample 9: .*records.json: record half: .*half there",
        r"sample 10: .*records.json: record half a \\ud83d: .*half there",
        "sample 11: cut: its prompts show 0 pictures within model.max_txt_len=32, and it has 1",
        "sample 12: .*records.json: record 7: unknown format",
        "sample 13: .*records.json: record #13: unknown format",
    ],
}


@pytest.fixture
def datasets(tmp_path) -> dict[str, DatasetConfig]:
    folder = write_folder(tmp_path / "align", ANNOTATIONS)
    (folder / "records.json").write_text(json.dumps(RECORDS))
    storages = {"laion": write_shards(tmp_path / "shards", 2, CAPTIONS), "cc_sbu_align": folder}
    storages["instruction"] = folder / "records.json"
    return {name: block(storage) for name, storage in storages.items()}


@pytest.fixture
def prompter(parity_prompter) -> Prompter:
    return replace(parity_prompter, window=200)


def assert_learns(prompter: Prompter, batch: dict, *answers: str) -> None:
    """Each sample teaches one of these answers; `<ImageHere>` in it is words."""
    known = [(prompter.encode(answer + prompter.end_sym))[: prompter.max_txt_len] for answer in answers]
    assert all(row[row != IGNORE].tolist() in known for row in batch["labels"])
    assert (batch["ids"] == IMAGE_ROW).sum() == prompter.rows * len(batch["ids"])


def named(caplog, name: str) -> None:
    lines = [r.getMessage() for r in caplog.records if f"datasets.{name}: skipped" in r.getMessage()]
    for reason in REASONS[name]:
        assert any(re.search(reason, line) for line in lines), (reason, lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("workers", [0, 1])
def test_training_continues_without_what_cannot_be_used(name, workers, datasets, parity_model, prompter, caplog):
    run = RunConfig(batch_size_train=2, num_workers=workers, max_skip_rate=1.0)
    config = Config(datasets={name: datasets[name]}, run=run)
    built = ImageTextPretrainTask(config).build_datasets("train")
    with closing(TrainBatches(built, config, LayOut(prompter, training=True))) as batches, torch.inference_mode():
        for _ in range(12):
            batch = next(batches)
            assert_learns(prompter, batch, *GOOD, " ! ", "See <ImageHere>.", "x")
            assert parity_model(batch)["loss"].isfinite()
    named(caplog, name)


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("name", REASONS)
def test_so_does_validation(name, datasets, parity_model, prompter, caplog):
    dataset = ImageTextPretrainTask(Config(datasets={name: datasets[name]})).build_datasets("val")[name]
    skips = SkipCounter(name, 1.0)
    for batch in filter(skips.usable, build_valid_loader(dataset, 3, 0, LayOut(prompter, training=False))):
        assert parity_model(batch)["loss"].isfinite()
    assert len(skips.reasons) == len(REASONS[name]) * (2 if name == "laion" else 1)
    named(caplog, name)


@pytest.mark.slow
def test_so_does_training_from_cached_features(datasets, parity_config, tmp_path, caplog):
    run = RunConfig(device="cpu", amp=False, num_workers=0, batch_size_train=2, max_skip_rate=1.0)
    run.cache_features = str(tmp_path / "cache")
    config = Config(replace(parity_config, max_context_len=200), {"cc_sbu_align": datasets["cc_sbu_align"]}, run=run)
    built = cached_datasets(config, ImageTextPretrainTask(config))["train"]
    model = MiniGPT4.from_config(config, towers=False)
    prompter = load_prompter(config.model)
    batches = TrainBatches(built, config, LayOut(prompter, training=True))
    for _ in range(12):
        batch = next(batches)
        assert batch["pictures"].dtype == torch.bfloat16 and batch["pictures"].dim() == 3  # features
        assert_learns(prompter, batch, *GOOD, "See <ImageHere>.", "x")
        assert model(batch)["loss"].isfinite()
    named(caplog, "cc_sbu_align")


def test_captions_that_their_processor_empties_are_named(datasets, prompter, caplog):
    datasets["laion"].text_processor.train = ProcessorConfig("blip_caption", prompt="a photo of ")
    config = Config(datasets={"laion": datasets["laion"]}, run=RunConfig(batch_size_train=2, num_workers=0))
    config.run.max_skip_rate = 1.0
    built = ImageTextPretrainTask(config).build_datasets("train")
    batches = TrainBatches(built, config, LayOut(prompter, training=True))
    answers = [f"a photo of {answer}" for answer in (*GOOD, "see <imagehere>")]
    for _ in range(12):
        assert_learns(prompter, next(batches), *answers)
    assert "0.tar/010: its text processor leaves nothing of the caption ' ! '" in caplog.text


PICTURE, FEATURES = torch.zeros(3, 56, 56), torch.zeros(8, 64)


def captioned(answer: str | None, *pictures: torch.Tensor) -> Conversation:
    return Conversation([Turn(list(pictures), answer)], kind="caption")


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (captioned(None, PICTURE), "^its answer is empty$"),
        (captioned("\n", PICTURE), "^its answer is empty$"),
        (captioned("a dog"), "^the prompt holds 1 <ImageHere> but 0 images were given"),
        (captioned("a dog", PICTURE, PICTURE), "^the prompt holds 1 <ImageHere> but 2 images were given"),
        (captioned("a dog", FEATURES, FEATURES), "^the prompt holds 1 <ImageHere> but 2 images were given"),
        (Conversation([Turn(["a"], "c"), Turn(["b"])]), "^its answer is empty$"),
        (Conversation([Turn(["a"], "c"), Turn(["b"], "")]), "^its answer is empty$"),
        (Conversation([Turn(["a"], HALF)]), HALF_SAID),
    ],
)
def test_what_is_looked_at(conversation, message, parity_prompter):
    lay_out = pickle.loads(pickle.dumps(LayOut(parity_prompter, training=True)))  # noqa: S301 as spawned workers get it
    with pytest.raises(UserError, match=message):
        lay_out({"conversation": conversation, "image_id": 0})
    assert lay_out({"conversation": captioned("a dog", PICTURE), "image_id": 0})["pictures"].shape == (1, 3, 56, 56)
    two = instructed("a", FEATURES, FEATURES)
    assert lay_out({"conversation": two, "image_id": 0})["pictures"].shape == (2, 8, 64)


def test_room_for_the_prompt_that_is_drawn(parity_prompter):
    prompts = ["<ImageHere> Describe. " + "word " * 30, "<ImageHere> Describe."]
    own, sample = replace(parity_prompter, prompts=prompts), captioned("a dog", PICTURE)
    tokens = len(own.example(sample))
    assert replace(own, window=tokens).example(sample) == own.example(sample)
    own = replace(own, window=tokens - 1)
    assert own.example(sample, lambda prompts: prompts[1])
    with pytest.raises(UserError, match=f"it has {tokens} tokens, and the LLM reads {tokens - 1} at once"):
        own.example(sample)


@pytest.mark.parametrize("key", ["prompt_path", "prompt_template"])
def test_a_prompt_of_the_config_that_no_sample_could_have_is_reported_before_anything_is_loaded(
    key, parity_config, tmp_path
):
    (tmp_path / "prompts.txt").write_text("<ImageHere> Describe.\n<ImageHere> " + "word " * 100)
    long = {"prompt_path": str(tmp_path / "prompts.txt"), "prompt_template": "word " * 100 + "{}"}
    config = replace(parity_config, max_context_len=90, **{key: long[key]})
    with pytest.raises(UserError, match=rf"^model.{key}: '.*word.*' has \d+ tokens, and the LLM reads 90 at once.*\.$"):
        preflight(Config(model=config))


@pytest.mark.distributed
def test_ranks_do_not_wait_for_one_whose_samples_are_all_unusable(tmp_path):
    """Of two processes the second begins with a shard of nothing but unusable captions, in training and validation."""
    for name in ("train", "val"):
        folder = write_shards(tmp_path / name, 2, [*GOOD, HALF])
        write_shards(tmp_path / f"{name}_bad", 1, [HALF] * 9)
        (tmp_path / f"{name}_bad" / "0.tar").rename(folder / "1.tar")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    command += ["--cfg-path", "train_configs/minigpt4_tiny_stage1_pretrain.yaml", "--options"]
    command += [f"datasets.cc_sbu.build_info.{k}={tmp_path}/{v}" for k, v in STORAGES.items()]
    command += [f"run.output_dir={tmp_path}/out", "run.max_epoch=1", "run.max_skip_rate=1.0", "run.batch_size_eval=2"]
    command += ["run.iters_per_epoch=6", "run.batch_size_train=3", "run.num_workers=1", "run.log_freq=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("1.tar/003: a character of the text is only half there") >= 2
    assert (tmp_path / "out" / "checkpoint_0" / "model.safetensors").is_file()
    assert "current process just got forked" not in done.stderr  # what tokenizers say where workers encode too


STORAGES = {"storage": "train", "valid_storage": "val"}
