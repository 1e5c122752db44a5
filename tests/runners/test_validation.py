"""What an epoch is judged by, and which checkpoint is kept as the best."""

import json
import multiprocessing

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.common.distributed import rank
from minigpt4.common.errors import UserError
from minigpt4.config.loading import load_config
from minigpt4.config.schema import Config, EvaluationDatasetConfig, RunConfig
from minigpt4.datasets.loading import build_valid_loader
from minigpt4.evaluation.benchmark import load_benchmark
from minigpt4.evaluation.results import read_result
from minigpt4.inference.loading import load_prompter
from minigpt4.runners import best as best_module
from minigpt4.runners.runner_base import RunnerBase
from minigpt4.runners.validation import Metric, Validation
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
from minigpt4.tiny.data import write_all
from tests.evaluation import DATA
from tests.runners.run_strategies import ROOT
from tests.runners.toy import Numbers, on_ranks, toy_runner


def weights(folder, name: str) -> torch.Tensor:
    return load_file(folder / name / "model.safetensors")["llama_proj.weight"]


@pytest.mark.slow
def test_the_loss_is_the_mean_over_label_tokens_however_they_are_batched(tmp_path):
    runner = toy_runner(tmp_path, valid=True, batch_size_eval=3)
    samples = [Numbers(7)[i] for i in range(7)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "label")}
    with torch.no_grad():
        expected = runner.model.eval()(batch)["loss"].item()
    runner.model.train()
    assert runner.validation.measure() == {"val_loss": pytest.approx(expected, abs=1e-6)}


@pytest.mark.slow
def test_of_many_splits_one_at_a_time_has_a_worker_and_none_outlives_it(tmp_path, monkeypatch):
    expected = None
    for workers in (0, 1):
        runner = toy_runner(tmp_path / str(workers), valid=True, num_workers=workers, batch_size_eval=2)
        for name, length in (("more", 5), ("others", 9)):
            runner.validation.loaders[name] = build_valid_loader(Numbers(length), 2, workers)
        before, counts = set(multiprocessing.active_children()), []

        def valid_step(model, batch, before=before, counts=counts):
            counts.append(len(set(multiprocessing.active_children()) - before))
            return model(batch)

        monkeypatch.setattr(runner.task, "valid_step", valid_step)
        measured = [runner.validation.measure() for _ in range(2)]
        assert measured[0] == measured[1] == (expected := expected or measured[0])
        assert max(counts) == workers and set(multiprocessing.active_children()) <= before


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True], ids=["at once", "in parts"])
@pytest.mark.parametrize(
    ("metric", "measures", "best"),
    [
        (None, [{"val_loss": 2.0}, {"val_loss": 1.0}, {"val_loss": 3.0}], 1),
        (None, [{"val_loss": 1.0}, {"val_loss": 3.0}, {"val_loss": 2.0}], 0),
        (None, [{"val_loss": 2.0}, {"val_loss": float("nan")}, {"val_loss": 3.0}], 0),
        (None, [{}, {}, {}], 2),  # nothing to judge by: the last
        (
            "overall",
            [{"val_loss": 2, "overall": 0.0}, {"val_loss": 3, "overall": 0.9}, {"val_loss": 1, "overall": 0.7}],
            1,
        ),
    ],
)
def test_the_best_checkpoint_has_the_lowest_loss_or_the_highest_score(
    metric, measures, best, parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(Validation, "check", lambda _: None)  # there are no questions
    left = iter(measures)
    for _ in range(3 if parts else 1):
        runner = toy_runner(tmp_path, max_epoch=3, resume="auto", metric=metric)

        def measure(runner=runner) -> dict:
            runner.stopping = parts
            return next(left)

        runner.validation.measure = measure
        runner.train()
    kept = weights(tmp_path, "checkpoint_best")
    assert [torch.equal(kept, weights(tmp_path, f"checkpoint_{n}")) for n in range(3)] == [n == best for n in range(3)]


def epochs(folder) -> list[dict]:
    records = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records if "epoch" in r]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    toy_runner(folder, max_epoch=2, valid=True).train()
    return folder


@pytest.mark.slow
def test_a_validation_that_fails_costs_no_training_and_is_made_up_for(tmp_path, whole, monkeypatch):
    runner = toy_runner(tmp_path, max_epoch=2, valid=True)
    monkeypatch.setattr(runner.validation, "loss", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    again = toy_runner(tmp_path, max_epoch=2, valid=True, resume="auto")
    assert again.step == 8 and not (tmp_path / "checkpoint_best").exists()
    again.train()
    assert epochs(tmp_path) == epochs(whole) and len(epochs(whole)) == 2
    for name in ("checkpoint_best", "checkpoint_0", "checkpoint_1"):
        assert torch.equal(weights(tmp_path, name), weights(whole, name))


@pytest.mark.slow
def test_a_crash_before_the_best_is_noted_does_not_lose_it(tmp_path, whole, monkeypatch):
    runner = toy_runner(tmp_path, max_epoch=2, valid=True)
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(best_module, "save_weights", lambda *_: 1 / 0)
        runner.train()
    toy_runner(tmp_path, max_epoch=2, valid=True, resume="auto").train()
    assert torch.equal(weights(tmp_path, "checkpoint_best"), weights(whole, "checkpoint_best"))


@pytest.mark.slow
def test_a_signal_ends_validation_at_once(tmp_path, whole, monkeypatch):
    runner = toy_runner(tmp_path, max_epoch=2, valid=True, batch_size_eval=1)
    seen = []

    def valid_step(model, batch):
        seen.append(batch)
        if len(seen) == 2:
            runner.signalled.set()
        return model(batch)

    monkeypatch.setattr(runner.task, "valid_step", valid_step)
    runner.train()
    assert len(seen) == 2 and runner.step == 8 and epochs(tmp_path) == []
    toy_runner(tmp_path, max_epoch=2, valid=True, batch_size_eval=1, resume="auto").train()
    assert [r["val_loss"] for r in epochs(tmp_path)] == pytest.approx([r["val_loss"] for r in epochs(whole)])


def stop_the_last_rank(folder) -> None:
    runner = toy_runner(folder, max_epoch=2, valid=True, batch_size_eval=1)
    measure = runner.validation.measure

    def stopped() -> dict:
        if rank() == 1:
            runner.signalled.set()
        return measure()

    runner.validation.measure = stopped
    runner.train()
    assert runner.stopping and runner.step == 8


@pytest.mark.distributed
def test_all_ranks_end_validation_together(tmp_path):
    on_ranks(2, stop_the_last_rank, tmp_path)
    assert epochs(tmp_path) == []


def refuse_few_samples(folder) -> None:
    runner = toy_runner(folder)
    runner.run.valid_splits, runner.strategy.sharded = ["val"], True
    own = (runner.config, runner.task, runner.strategy)
    with pytest.raises(UserError, match="datasets.numbers: 1 validation samples, and .* each of 2 processes needs one"):
        Validation(*own, {"val": {"numbers": Numbers(1)}}, runner.signalled)
    enough = Validation(*own, {"val": {"numbers": Numbers(2)}}, runner.signalled)
    (folder / f"{rank()}.txt").write_text(str(list(enough.loaders)))


@pytest.mark.distributed
def test_fewer_samples_than_processes_of_a_sharded_model_are_refused_before_training(tmp_path):
    on_ranks(2, refuse_few_samples, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["['numbers']"] * 2


@pytest.mark.slow
def test_the_metric_is_taken_each_epoch_and_decides(tmp_path, monkeypatch):
    """The bundled model sees; learning rates that grow a thousandfold blind it in the second epoch."""
    monkeypatch.chdir(ROOT)
    write_all(tmp_path, seed=1, scale=0.02)
    file = tmp_path / "benchmark" / "benchmark.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:20]))
    (tmp_path / "more.jsonl").write_text('{"question": "Hello?", "answer": "hello"}\n')
    options = [
        f"evaluation_datasets.tiny_scenes.eval_file_path={file}",
        f"evaluation_datasets.tiny_scenes.img_path={tmp_path}/benchmark/image",
        "evaluation_datasets.tiny_scenes.max_new_tokens=8",
        f"evaluation_datasets.more.eval_file_path={tmp_path}/more.jsonl",
        f"datasets.cc_sbu_align.build_info.storage={tmp_path}/stage2",
        "model.ckpt=${env.package_dir}/assets/tiny/projection.safetensors",
        f"run.output_dir={tmp_path}/out",
        *("run.valid_splits=[]", "run.metric=tiny_scenes.overall", "run.controls=[blank_images]", "run.num_workers=0"),
        *("run.lr_sched=linear_warmup_step_lr", "run.init_lr=1e-4", "run.lr_decay_rate=1e4", "run.warmup_steps=0"),
        *("run.max_epoch=2", "run.iters_per_epoch=2", "run.batch_size_train=4", "run.log_freq=1"),
    ]
    config = load_config(ROOT / "train_configs" / "minigpt4_tiny_stage2_finetune.yaml", options)
    RunnerBase.check(config)
    task = ImageTextPretrainTask(config)
    datasets = {"train": task.build_datasets("train")}
    RunnerBase(config, task, task.build_model(), datasets, load_prompter(config.model)).train()
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    first, second = (r["tiny_scenes.overall"] for r in records if "tiny_scenes.overall" in r)
    assert [r["more.all"] for r in records if "more.all" in r] == []  # of each benchmark the main score alone
    assert len([r for r in records if "more.overall" in r]) == 2
    assert first > 0.7 > 0.5 > second
    assert torch.equal(weights(out, "checkpoint_best"), weights(out, "checkpoint_0"))
    assert json.loads((out / "evaluation.json").read_text())["tiny_scenes"].keys() == {"trained"}
    assert read_result(out / "tiny_scenes").manifest["checkpoints"] == {"those in training": None}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"metric": "overal"},
            "run.metric: 'overal' is not a score of evaluation_datasets. Did you mean 'overall'",
        ),
        ({"metric": "overall", "strategy": "fsdp"}, "run.metric: a sharded model can't generate"),
        ({"metric": "overall", "cache_features": "x"}, "run.metric: it is taken on pictures"),
        ({"metric": "colour"}, None),
        ({"metric": "all"}, None),
        ({"metric": "x.colour"}, None),
        ({"metric": "x.color"}, "run.metric: 'x.color' is not a score of evaluation_datasets. Did you mean 'x.colour'"),
    ],
)
def test_a_metric_that_cannot_be_taken_is_refused_before_anything_is_loaded(run, message, tmp_path):
    questions = [{"image": "0.jpg", "question": "a", "answer": "b", "question_type": "colour"}]
    questions.append({"image": "0.jpg", "question": "a", "answer": "b"})
    (tmp_path / "0.jpg").touch()
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    own = EvaluationDatasetConfig(str(tmp_path / "questions.json"), str(tmp_path))
    config = Config(evaluation_datasets={"x": own}, run=RunConfig(output_dir=str(tmp_path / "out"), **run))
    config.preprocess.vis_processor.eval.name = "blip2_image_eval"
    if message is None:
        RunnerBase.check(config)
        return
    with pytest.raises(UserError, match=message) as error:
        RunnerBase.check(config)
    assert "\n" not in str(error.value)


def test_a_fraction_and_a_percentage_have_no_mean(tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps([{"question": "a", "answer": "b"}]))
    own = EvaluationDatasetConfig(str(tmp_path / "questions.json"), str(tmp_path))
    config = Config(evaluation_datasets={"x": own, "y": own}, run=RunConfig(output_dir=str(tmp_path)))
    assert "overall" in Metric(config).known()
    config.evaluation_datasets["vqav2"] = EvaluationDatasetConfig(str(DATA / "vqav2"), str(tmp_path))
    for question in load_benchmark("vqav2", config.evaluation_datasets["vqav2"]).questions:
        question.pictures[0].touch()
    known = Metric(config).known()
    assert "overall" not in known and {"x.overall", "vqav2.overall"} <= known
