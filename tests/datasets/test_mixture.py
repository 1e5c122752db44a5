"""Training batches: the same again from any position, by any number of workers."""

import json
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt4.common.errors import UserError
from minigpt4.conversation.prompter import IGNORE
from minigpt4.datasets.formats import shards as shards_module
from minigpt4.datasets.loading import LayOut, build_valid_loader
from minigpt4.datasets.streams import seeded
from tests.datasets.mixing import batches, captions, dataset, drawn

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 7, 16])
def test_batches_continue_to_the_bit_and_leave_the_runs_random_numbers_alone(folder, workers, cut):
    torch.manual_seed(1)
    random.seed(1)
    whole = drawn(batches(folder, num_workers=workers), 24)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(1))
    assert random.random() == random.Random(1).random()
    first = batches(folder, num_workers=workers)
    assert drawn(first, cut) == whole[:cut]
    torch.rand(7), random.random()  # of no account
    state = json.loads(json.dumps([first.state_dict()]))  # small and plain
    assert drawn(batches(folder, num_workers=workers, state=state), 24 - cut) == whole[cut:]


PROMPTS = [f"<ImageHere> {word}" for word in ("hello", "where", "a dog", "and more", "six", "7", "small", "grass")]


@pytest.fixture
def lay_out(parity_prompter) -> LayOut:
    return LayOut(replace(parity_prompter, prompts=PROMPTS), training=True)


def asked(lay_out: LayOut, batches: Iterable[dict]) -> list[tuple[str, int]]:
    """The name of each sample of batches, and the number of the prompt that was drawn for it."""
    prompter, found = lay_out.prompter, []
    layouts = [prompter.layout(prompter.parse(prompt, [None])) for prompt in PROMPTS]
    for batch in batches:
        for name, ids, labels in zip(batch["image_id"], batch["ids"], batch["labels"], strict=True):
            first = (labels != IGNORE).nonzero()[0].item()
            found.append((name, layouts.index(ids[:first].tolist())))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("names", [("cc_sbu_align",), ("laion", "cc_sbu_align")])
@pytest.mark.parametrize("workers", [0, 2])
def test_prompts_are_drawn_in_workers_and_the_same_after_a_resume(names, workers, folder, lay_out):
    how = {"names": names, "num_workers": workers, "lay_out": lay_out}
    random.seed(1)
    whole = asked(lay_out, islice(batches(folder, **how), 20))
    assert random.random() == random.Random(1).random()
    assert {number for _, number in whole} == set(range(len(PROMPTS)))
    first = batches(folder, **how)
    assert asked(lay_out, islice(first, 9)) == whole[:27]
    random.seed(2)  # of no account
    state = json.loads(json.dumps([first.state_dict()]))
    assert asked(lay_out, islice(batches(folder, state=state, **how), 11)) == whole[27:]
    if names == ("cc_sbu_align",):
        assert asked(lay_out, islice(batches(folder, names, lay_out=lay_out, num_workers=1), 20)) == whole


def test_ranks_passes_and_seeds_draw_other_prompts(folder, lay_out):
    def numbers(names: tuple[str, ...], count: int, **how) -> list[int]:
        return [n for _, n in asked(lay_out, islice(batches(folder, names, lay_out=lay_out, **how), count))]

    for names in (("laion",), ("cc_sbu_align",)):
        ranks = [numbers(names, 4, rank=rank, ranks=2) for rank in range(2)]
        assert ranks[0] != ranks[1]
        assert numbers(names, 4, seed=6) != numbers(names, 4)
    two = asked(lay_out, islice(batches(folder, ("cc_sbu_align",), lay_out=lay_out, batch_size_train=20), 2))
    assert dict(two[:20]).keys() == dict(two[20:]).keys() and dict(two[:20]) != dict(two[20:])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["laion", "cc_sbu_align"])
def test_validation_always_asks_with_the_first_prompt(name, workers, folder, lay_out):
    split = dataset(name, folder if name == "cc_sbu_align" else folder / "shards")
    loader = build_valid_loader(split, 3, workers, replace(lay_out, training=False))
    for _ in range(2):
        found = asked(lay_out, loader)
        assert [number for _, number in found] == [0] * (35 if name == "laion" else 20)


@pytest.mark.slow
def test_map_style_batches_are_the_same_with_any_number_of_workers(folder):
    names = ("cc_sbu_align",)
    assert drawn(batches(folder, names), 9) == drawn(batches(folder, names, num_workers=2), 9)


def test_seeds_and_passes_differ_and_a_pass_holds_each_sample_once(folder):
    names = ("cc_sbu_align",)
    taken = drawn(batches(folder, names, batch_size_train=20), 2)
    assert sorted(taken[0][0]) == sorted(taken[1][0]) and taken[0][0] != taken[1][0]
    assert taken[0][1] != taken[1][1]  # other crops of the same pictures
    assert drawn(batches(folder, names, batch_size_train=20, seed=6), 1)[0][0] != taken[0][0]
    for ranks in (1, 3):
        texts = []
        for rank in range(ranks):
            found = batches(folder, names, rank=rank, ranks=ranks)
            texts += [text for answers, _ in drawn(found, found.length) for text in answers]
        assert len(texts) == len(set(texts)) == 18


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2), (5, 0)])
def test_a_pass_over_shards_holds_each_sample_once_over_all_ranks_and_workers(folder, ranks, workers, monkeypatch):
    monkeypatch.setattr(shards_module, "SHUFFLED_TOGETHER", 7)  # with one sample a batch, blocks end with shards
    texts = []
    for rank in range(ranks):
        found = batches(folder, ("laion",), rank=rank, ranks=ranks, num_workers=workers, batch_size_train=1)
        for _ in range(max(workers, 1) * 35):
            (answer,) = captions(next(found))
            state = found.state_dict()["streams"]["laion"]
            worker = (state["drawn"] - 1) % max(workers, 1)
            position = shards_module.Position(*state["positions"][worker])
            if position.pass_ == 0 or (position.pass_ == 1 and position[1:] == (0, 0, 0, 0)):
                texts.append(answer)
    assert Counter(texts) == {f"shard {i}": 1 for i in range(35)}


def test_shards_are_shuffled_across_and_within(folder):
    texts = [text for answers, _ in drawn(batches(folder, ("laion",)), 10) for text in answers]
    numbers = [int(text.split()[1]) for text in texts]
    assert numbers[:6] != sorted(numbers[:6]) and numbers[:6] != list(range(6))


@pytest.mark.slow
def test_all_ranks_draw_the_same_dataset_in_proportion_to_the_ratios(folder):
    def sources(rank: int) -> list[str]:
        return [answers[0].split()[0] for answers, _ in drawn(batches(folder, rank=rank, ranks=2), 60)]

    assert sources(0) == sources(1)
    assert 10 < sources(0).count("shard") < 30


def test_another_number_of_processes_continues_with_what_the_pass_has_left(folder, caplog):
    names = ("cc_sbu_align",)
    found = [batches(folder, names, rank=rank, ranks=2) for rank in range(2)]
    before = {text for one in found for answers, _ in drawn(one, 2) for text in answers}
    state = [one.state_dict() for one in found]
    after = batches(folder, names, state=state, batch_size_train=4)
    assert "1 processes, 4 samples in a batch now, 2 processes, 3 samples in a batch before" in caplog.text
    texts = {text for answers, _ in drawn(after, 2) for text in answers}
    assert len(before) == 12 and len(texts) == 8 and not before & texts
    again = batches(folder, names, state=[after.state_dict()], batch_size_train=4)
    assert drawn(again, 3) == drawn(after, 3)  # the pass that had a base, then whole ones


def test_another_number_of_workers_continues_after_the_shards_that_are_done(folder, caplog, monkeypatch):
    monkeypatch.setattr(shards_module, "SHUFFLED_TOGETHER", 1)
    names = ("laion",)
    found = batches(folder, names, num_workers=2, batch_size_train=1)
    texts = [text for answers, _ in drawn(found, 22) for text in answers]  # each worker: a shard and 4 samples
    after = batches(folder, names, state=[found.state_dict()], batch_size_train=1)
    assert "continues from shard 2 of pass 0" in caplog.text
    rest = [text for answers, _ in drawn(after, 21) for text in answers]
    assert set(texts) | set(rest) == {f"shard {i}" for i in range(35)}
    assert len(set(texts) & set(rest)) == 8  # of the shards that were not done


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ranks=st.integers(1, 5), batch=st.integers(1, 6), cut=st.integers(0, 12), data=st.data())
def test_any_change_of_layout_keeps_a_pass_whole(folder, ranks, batch, cut, data):
    names = ("cc_sbu_align",)
    if 20 // ranks // batch == 0:
        return
    found = [batches(folder, names, rank=r, ranks=ranks, batch_size_train=batch) for r in range(ranks)]
    cut = min(cut, found[0].length)
    before = [text for one in found for answers, _ in drawn(one, cut) for text in answers]
    ranks2 = data.draw(st.integers(1, 5))
    batch2 = data.draw(st.integers(1, max(20 // ranks2, 1)))
    states = [one.state_dict() for one in found]
    after = [batches(folder, names, states, rank=r, ranks=ranks2, batch_size_train=batch2) for r in range(ranks2)]
    left = (20 - len(before)) // (ranks2 * batch2)
    rest = [text for one in after for answers, _ in drawn(one, left) for text in answers]
    assert len(set(before + rest)) == len(before) + len(rest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_shards_come_over_http_and_through_pipes(folder, workers):
    """Webdataset's own openers. What a server lacks is counted as a damaged shard is."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    files = folder / "shards"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=files)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        expected = drawn(batches(folder, ["laion"], num_workers=workers), 8)
        for storage in (f"{web}/{{0..4}}.tar", f"pipe:cat {files}/{{0..4}}.tar"):
            with closing(batches(folder, ["laion"], num_workers=workers, storage=storage)) as found:
                assert drawn(found, 8) == expected
        found = batches(folder, ["laion"], num_workers=workers, storage=f"{web}/{{5..9}}.tar")
        with closing(found), pytest.raises(UserError, match="9.tar"):
            next(found)
        server.shutdown()


def test_too_few_shards_are_refused_with_the_cure(folder):
    with pytest.raises(UserError, match="run.num_workers: 4 on each of 2 processes need 8 shards, and laion has 5"):
        batches(folder, ("laion",), num_workers=4, ranks=2)
    with pytest.raises(UserError, match="datasets.laion: 6 processes need as many shards, and it has 5"):
        batches(folder, ("laion",), ranks=6)
    with pytest.raises(UserError, match="run.batch_size_train: 11 is more than the 10 samples that each of 2"):
        batches(folder, ("cc_sbu_align",), batch_size_train=11, ranks=2)


@pytest.mark.slow
def test_workers_can_be_spawned(folder, monkeypatch):
    """As on systems that don't fork."""
    monkeypatch.setattr(shards_module, "SHUFFLED_TOGETHER", 1000)  # a spawned process knows of no other
    whole = drawn(batches(folder, num_workers=1), 4)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert drawn(batches(folder, num_workers=1), 4) == whole
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_seeded_puts_everything_back():
    torch.manual_seed(3), random.seed(3)
    expected = torch.rand(1), random.random()
    torch.manual_seed(3), random.seed(3)
    values = []
    for _ in range(2):
        with pytest.raises(KeyError), seeded("x"):
            values.append((torch.rand(1).item(), random.random()))
            raise KeyError
    assert (torch.rand(1), random.random()) == expected
    assert values[0] == values[1]
