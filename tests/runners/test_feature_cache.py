"""Features of frozen towers, cached: the same loss without the towers, and no stale or half cache is trained from."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.common.locks import locked
from minigpt4.config.schema import (
    BuildInfo,
    Config,
    DatasetConfig,
    ProcessorConfig,
    ProcessorsConfig,
    RunConfig,
    VisionConfig,
)
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.inference.loading import load_prompter
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.preflight import preflight
from minigpt4.models.vision import build_vision
from minigpt4.models.vision.cached_features import CachedFeatures
from minigpt4.processors.image import Blip2ImageEvalProcessor
from minigpt4.runners import feature_cache
from minigpt4.runners.feature_cache import FeatureCache, cached_datasets
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from minigpt4.tiny.data import write_all
from tests.batches import batch_of, instructed

ROOT = Path(__file__).parents[2]


def write_pictures(folder: Path, count: int) -> str:
    (folder / "image").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(numbers.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / "image" / f"{i}.jpg")
    annotations = [{"image_id": str(i), "caption": f"a dog {i}"} for i in range(count)]
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return str(folder)


@pytest.fixture
def config(tmp_path, parity_config, monkeypatch) -> Config:
    monkeypatch.setattr(feature_cache, "SHARD_SAMPLES", 4)
    images = ProcessorsConfig(ProcessorConfig("blip2_image_train", 56), ProcessorConfig("blip2_image_eval", 56))
    text = ProcessorsConfig(ProcessorConfig("blip_caption"), ProcessorConfig("blip_caption"))
    info = BuildInfo(write_pictures(tmp_path / "train", 10), write_pictures(tmp_path / "val", 3))
    run = RunConfig(device="cpu", amp=False, num_workers=0, batch_size_eval=2, valid_splits=["val"])
    run.cache_features = str(tmp_path / "cache")
    return Config(model=parity_config, datasets={"cc_sbu_align": DatasetConfig(info, images, text)}, run=run)


def cached(config: Config) -> dict:
    return cached_datasets(config, ImageTextPretrainTask(config))


def shown(dataset, index: int) -> torch.Tensor:
    """The one picture of a sample, or its features."""
    (picture,) = dataset[index]["conversation"].pictures
    return picture


@pytest.mark.slow
@pytest.mark.parametrize("has_qformer", [True, False])
def test_the_loss_is_that_of_the_towers_with_features_in_bf16(has_qformer, config, monkeypatch):
    if not has_qformer:
        config.model = replace(config.model, has_qformer=False, ckpt=None)
    datasets = cached(config)
    models = []
    for towers in (True, False):
        torch.manual_seed(0)  # the projection begins alike
        models.append(MiniGPT4.from_config(config, towers).eval())
    live, blind = models
    assert isinstance(blind.vision, CachedFeatures) and not list(blind.vision.parameters())
    assert torch.equal(live.projection.weight, blind.projection.weight)
    assert len(datasets["train"]["cc_sbu_align"]) == 10 and len(datasets["val"]["cc_sbu_align"]) == 3
    prompter, exact = load_prompter(config.model), live.vision.forward
    for split, ids in (("train", [7, 2, 9]), ("val", [0, 2])):
        dataset = datasets[split]["cc_sbu_align"]
        own, shown = ([source[i]["conversation"] for i in ids] for source in (dataset, dataset.dataset))
        assert [turn.answer for one in own for turn in one.turns] == [f"a dog {i}" for i in ids]
        batch, pictures = batch_of(prompter, own), batch_of(prompter, shown)
        assert torch.equal(batch["ids"], pictures["ids"]) and torch.equal(batch["labels"], pictures["labels"])
        assert batch["pictures"].shape == (len(ids), prompter.rows, blind.vision.width)
        torch.testing.assert_close(blind(batch)["loss"], live(pictures)["loss"], rtol=1e-2, atol=0)
        monkeypatch.setattr(live.vision, "forward", lambda image: exact(image).bfloat16().float())
        torch.testing.assert_close(blind(batch)["loss"], live(pictures)["loss"], rtol=0, atol=1e-5)
        monkeypatch.setattr(live.vision, "forward", exact)
    blind.train()(batch_of(prompter, [instructed("hello", "hi")]))["loss"].backward()  # text alone
    assert not blind.projection.weight.grad.any()


@pytest.mark.slow
def test_training_pictures_are_those_of_evaluation_decoded_in_full(config):
    """A live run may decode a JPEG at a fraction of its size, which gives other pixels: a cache keeps none of those."""
    file = Path(config.datasets["cc_sbu_align"].build_info.storage) / "image" / "3.jpg"
    pixels = np.random.default_rng(3).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1024, 700)).save(file)
    dataset = cached(config)["train"]["cc_sbu_align"]
    processor = Blip2ImageEvalProcessor(56)
    exact, reduced = (processor.load(file, reduced) for reduced in (False, True))
    assert not torch.equal(exact, reduced)
    vision = build_vision(config).eval()
    vision.load(config, preflight(config, vision))
    features = vision(exact.unsqueeze(0))[0]
    torch.testing.assert_close(shown(dataset, 3), features.bfloat16(), atol=1e-2, rtol=1e-2)
    assert torch.equal(shown(dataset.dataset, 3), exact)
    assert config.datasets["cc_sbu_align"].vis_processor.train.name == "blip2_image_train"  # as the user wrote it


@pytest.mark.slow
def test_others_may_read_a_cache_as_the_umask_says(config):
    cached(config)
    (file,) = {f.stat().st_mode & 0o777 for f in Path(config.run.cache_features).iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert file == 0o666 & ~umask


@pytest.mark.slow
def test_a_full_cache_needs_no_towers(config, monkeypatch):
    first = cached(config)["train"]["cc_sbu_align"]
    monkeypatch.setattr(feature_cache, "build_vision", partial(build_vision, towers=False))
    again = cached(config)["train"]["cc_sbu_align"]
    assert torch.equal(shown(first, 3), shown(again, 3)) and first[3]["image_id"] == again[3]["image_id"] == "3"
    assert again[3]["conversation"] == Conversation([Turn([ANY], "a dog 3")], kind="caption")


@pytest.mark.slow
def test_filling_continues_where_it_was_cut_off(config, tmp_path, monkeypatch):
    whole = cached(config)["train"]["cc_sbu_align"]
    folder = tmp_path / "cache"
    assert len(list(folder.glob("*.safetensors"))) == 4  # 13 samples
    (folder / "train-cc_sbu_align-4.safetensors").rename(folder / "train-cc_sbu_align-4.tmp")
    seen = []
    write = feature_cache.FeatureCache.write
    monkeypatch.setattr(feature_cache.FeatureCache, "write", lambda c, s: (seen.append(len(s)), write(c, s))[1])
    again = cached(config)["train"]["cc_sbu_align"]
    assert sum(seen) == 4 and not list(folder.glob("*.tmp"))
    assert all(torch.equal(shown(again, i), shown(whole, i)) for i in range(10))


@pytest.mark.slow
def test_a_split_may_be_added(config):
    config.run.valid_splits = []
    assert len(cached(config)) == 1
    config.run.valid_splits = ["val"]
    assert len(cached(config)) == 2


def touch(config: Config, name: str) -> None:
    """Another picture of the same size would be newer."""
    os.utime(Path(config.datasets["cc_sbu_align"].build_info.storage) / name, (1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: setattr(c, "model", replace(c.model, vit_precision="bf16")), "model.vit_precision"),
        (lambda c: c.datasets["cc_sbu_align"].vis_processor.eval.mean.append(0.5), "datasets.cc_sbu_align"),
        (lambda c: write_picture_again(c, "image/2.jpg"), "datasets.cc_sbu_align"),
        (lambda c: write_picture_again(c, "filter_cap.json"), "datasets.cc_sbu_align"),
        (lambda c: touch(c, "image/2.jpg"), "datasets.cc_sbu_align"),
        (lambda c: setattr(c.run, "amp", not c.run.amp), "run.amp_dtype"),
    ],
)
def test_a_cache_of_something_else_is_refused_in_one_line(change, named, config):
    config.datasets["cc_sbu_align"].vis_processor.eval.mean = [0.5, 0.5]
    config.datasets["cc_sbu_align"].vis_processor.eval.mean.append(0.5)
    cached(config)
    change(config)
    with pytest.raises(UserError, match=f"run.cache_features: .* another {named}.* Delete the folder") as error:
        cached(config)
    assert "\n" not in str(error.value)


def write_picture_again(config: Config, name: str) -> None:
    file = Path(config.datasets["cc_sbu_align"].build_info.storage) / name
    if file.suffix == ".jpg":
        Image.new("RGB", (9, 9)).save(file)
    else:
        file.write_text(file.read_text().replace("dog", "cat"))  # of the same size


@pytest.mark.slow
def test_damaged_shards_are_named(config, tmp_path):
    cached(config)
    (tmp_path / "cache" / "val-cc_sbu_align-0.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="val-cc_sbu_align-0.safetensors is damaged .* Delete it"):
        cached(config)


def read_all(config: Config) -> None:
    for own in cached(config).values():
        for i in range(len(own["cc_sbu_align"])):
            own["cc_sbu_align"][i]


@pytest.mark.slow
def test_a_flipped_bit_and_a_damaged_fingerprint_are_found(config, tmp_path):
    read_all(config)
    shard = next((tmp_path / "cache").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 64
    shard.write_bytes(data)
    with pytest.raises(UserError, match="safetensors' is damaged. Delete that file"):
        read_all(config)
    (tmp_path / "cache" / "fingerprint.json").write_text("{")
    with pytest.raises(UserError, match="fingerprint.json' is damaged. Delete '.*cache' to fill it again"):
        cached(config)


class Mixed:
    """One picture, none, two in a dialogue of two turns, and a sample that can't be used."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        if i == 3:
            raise UserError("sample 3 is damaged")
        one, two = torch.ones(2, 3, 56, 56)
        turns = (
            [Turn([one, " Hm?"], "no")],
            [Turn(["Hm?"], "no")],
            [Turn([one, "<ImageHere>"], "a"), Turn([two], "b")],
        )
        return {"conversation": Conversation(turns[i], system="Be brief."), "image_id": i}


@pytest.mark.slow
def test_samples_with_no_picture_several_and_damaged_ones(config, monkeypatch, caplog):
    monkeypatch.setattr(ImageTextPretrainTask, "build_datasets", lambda *_, **__: {"cc_sbu_align": Mixed()})
    dataset = cached(config)["train"]["cc_sbu_align"]
    assert "sample 3 is damaged" in caplog.text
    for i in range(3):
        own, live = dataset[i], Mixed()[i]
        assert own["image_id"] == i and own["conversation"].system == "Be brief."
        assert all(features.shape == (8, 64) for features in own["conversation"].pictures)
        for turn, expected in zip(own["conversation"].turns, live["conversation"].turns, strict=True):
            assert turn.answer == expected.answer
            assert turn.question == [part if isinstance(part, str) else ANY for part in expected.question]
    with pytest.raises(UserError, match="sample 3 is damaged"):
        dataset[3]
    model = MiniGPT4.from_config(config, towers=False)
    batch = batch_of(load_prompter(config.model), [dataset[i]["conversation"] for i in range(3)])
    assert batch["pictures"].shape == (3, 8, 64) and model(batch)["tokens"] > 0


@pytest.mark.slow
def test_a_cache_of_an_earlier_version_is_refused_at_once(config, tmp_path):
    """Its samples were not conversations; read by the workers, each would be skipped as unusable."""
    cached(config)
    file = tmp_path / "cache" / "fingerprint.json"
    prints = json.loads(file.read_text())
    del prints["format"]
    file.write_text(json.dumps(prints))
    with pytest.raises(UserError, match=r"^run.cache_features: '.*cache' was filled by an earlier version. Delete the"):
        cached(config)


@pytest.mark.slow
def test_a_full_cache_is_enough_without_the_part_that_filled_it(config):
    cached(config)
    config.model = replace(config.model, ckpt=None, vit_model="/no/file", vision=VisionConfig("cached_features"))
    with pytest.raises(UserError, match="model.vision: cached_features needs rows and width"):
        cached(config)
    config.model.vision.rows, config.model.vision.width = 8, 64
    dataset = cached(config)["train"]["cc_sbu_align"]
    model = MiniGPT4.from_config(config).eval()
    batch = batch_of(load_prompter(config.model), [dataset[i]["conversation"] for i in range(2)])
    assert model(batch)["tokens"] > 0
    with pytest.raises(UserError, match=r"cached features are \[8, 64\] here, and \[3, 56, 56\] was given"):
        model.encode_img(torch.zeros(1, 3, 56, 56))
    next(Path(config.run.cache_features).glob("train*.safetensors")).unlink()
    with pytest.raises(UserError, match="model.vision.name: cached_features sees no pictures, and .* lacks 4 samples"):
        cached(config)


def test_what_a_cache_cannot_serve_is_refused(config):
    config.datasets["laion"] = config.datasets.pop("cc_sbu_align")
    shard = Path(config.run.cache_features).parent / "0.tar"
    shard.write_bytes(b"")
    config.datasets["laion"].build_info.storage = str(shard)
    config.run.valid_splits = []
    with pytest.raises(UserError, match="datasets.laion streams shards; a cache needs data with a length"):
        cached(config)
    data = Path(__file__).parents[1] / "fixtures" / "minigptv2" / "data" / "gqa"
    asked = replace(config.datasets["laion"], format="vqa")
    asked.build_info = BuildInfo(str(data / "train_balanced_questions.json"), images=str(data / "images"))
    config.datasets = {"gqa": asked}
    with pytest.raises(UserError, match="datasets.gqa draws new questions each time"):
        cached(config)
    config.model = replace(config.model, unfreeze=["qformer"])
    with pytest.raises(UserError, match="run.cache_features: .* while qformer train"):
        RunnerBase.check(config)


@pytest.mark.distributed
def test_two_processes_fill_and_train(tmp_path):
    write_all(tmp_path / "data", seed=1, scale=0.02)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    command += ["--cfg-path", "train_configs/minigpt4_tiny_stage2_finetune.yaml", "--options", "model.ckpt=null"]
    command += [f"datasets.cc_sbu_align.build_info.{k}={tmp_path}/data/stage2{v}" for k, v in KEYS.items()]
    command += [f"run.cache_features={tmp_path}/cache", f"run.output_dir={tmp_path}/out", "run.max_epoch=1"]
    command += ["run.iters_per_epoch=2", "run.batch_size_train=4", "run.num_workers=0", "run.log_freq=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert "evaluation transform" in done.stderr and "| vision" not in done.stderr
    counts = [len(json.loads((tmp_path / "data" / s / "filter_cap.json").read_text())["annotations"]) for s in KEYS_AT]
    assert len(FeatureCache(tmp_path / "cache").index) == sum(counts)
    assert (tmp_path / "out" / "checkpoint_0" / "model.safetensors").is_file()


KEYS = {"storage": "", "valid_storage": "_val"}
KEYS_AT = ["stage2", "stage2_val"]


@pytest.mark.slow
def test_two_runs_do_not_fill_one_cache_at_once(config, monkeypatch):
    monkeypatch.setattr(feature_cache, "LOCK_TIMEOUT", 0)
    folder = Path(config.run.cache_features)
    with locked("run.cache_features", folder), pytest.raises(UserError, match="run.cache_features: .* is in use by"):
        cached(config)
    cached(config)


def test_a_cache_that_cannot_be_written_is_reported(config):
    (Path(config.run.cache_features) / "train-cc_sbu_align-0.tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run.cache_features: '.*' can't be written \(Is a directory\)"):
        cached(config)
