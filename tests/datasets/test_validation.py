"""What `minigpt4 validate-data` finds, counts, prints and shows."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from minigpt4.common.paths import TINY_LLM
from minigpt4.config.schema import DatasetConfig, ModelConfig
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.conversation.templates import TEMPLATES
from minigpt4.datasets.validation import TokenCounter, check_file, histogram
from minigpt4.inference.loading import load_prompter


@pytest.mark.parametrize("flavour", ["vicuna0", "llama2", "v2"])
@pytest.mark.parametrize("conversation", ["vicuna_v0", "chatml"])
def test_tokens_are_those_that_the_model_reads(flavour, conversation, parity_engines):
    template = "<|im_start|>user\n{}<|im_end|>\n" if conversation == "chatml" else "###Human: {} ###Assistant: "
    own = parity_engines[flavour].prompter
    config = ModelConfig(
        has_qformer=flavour == "vicuna0",
        num_query_token=8,
        image_size=84 if flavour == "v2" else 56,
        llama_model=own.tokenizer.name_or_path,
        conversation=conversation,
        prompt_template=template,
        end_sym="###",
    )
    counter = TokenCounter(load_prompter(config), config.llama_model, limits=True)
    expected = replace(own, template=TEMPLATES[conversation], prompt_template=template, turn_template="<s>" + template)
    expected = replace(expected, end_sym="###", tokenizer=counter.prompter.tokenizer, max_txt_len=32)
    assert counter.prompter == expected
    turns = [Turn([None, " What ", None, " is it?"], "A dog."), Turn(["Why?"], "So."), Turn(["Is it?"], "yes")]
    prompt, rest = map(len, counter.prompter.turns(Conversation(turns)))
    assert len(replace(expected, max_txt_len=10**9).example(Conversation(turns))) == prompt + rest  # with the BOS
    shown = "<Img><ImageHere></Img> What <Img><ImageHere></Img> is it?"
    assert prompt == 1 + len(expected.prompt(expected.parse(template.format(shown), [None] * 2)))


@pytest.fixture
def own(tmp_path):
    """A file with every kind of problem, and good records."""
    for i in range(3):
        Image.new("RGB", (300, 200), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:80])
    good = [{"id": f"good{i}", "image": "0.png", "instruction": "<script>", "output": "{{ a & b }}"} for i in range(9)]
    bad = [
        {"id": "truncated", "instruction": "Count.", "output": "one two three " * 80},
        {"id": "too long", "image": "1.png", "instruction": "Count. " * 400, "output": "one"},
        {"id": "unreadable", "image": "bad.png", "instruction": "What?", "output": "x"},
        {"id": "empty", "instruction": "What?", "output": ""},
        {"id": "mismatch", "image": "0.png", "instruction": "<image><image>", "output": "x"},
        {"id": "unknown", "caption": "x"},
        *({"id": f"gone{i}", "image": f"gone{i}.png", "instruction": "What?", "output": "x"} for i in range(25)),
    ]
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "all.json").write_text(json.dumps(good + bad))
    return tmp_path


CONFIG = """
model: {{arch: mini_gpt4, model_type: tiny, max_txt_len: 100, max_context_len: 600}}
datasets: {{instruction: {{build_info: {{storage: {file}, images: {images}}}, text_processor: {{train: {train}}}}}}}
"""


@pytest.fixture
def command(minigpt4):
    return partial(minigpt4, "validate-data")


@pytest.mark.slow
def test_every_problem_is_counted_and_named(own, command):
    processor = "{name: base_instruction, max_words: 1000}"
    text = CONFIG.format(file=own / "all.json", images=own, train=processor)
    (own / "run.yaml").write_text(text)
    code, out, _ = command(own / "all.json", "--cfg-path", own / "run.yaml", "--page", own / "pages" / "x.html")
    assert code == 1
    assert "40 records (1 of text alone), 10 pictures" in out
    assert re.search(r"25 x missing file: gone0, .*gone19, and 5 more\n +gone0: '.*gone0.png' does not exist", out)
    assert re.search(
        r"1 x truncated: truncated\n +truncated: its answers have \d+ tokens, and .*max_txt_len is 100", out
    )
    for kind, name in {
        "too long": "too long",
        "unreadable image": "unreadable",
        "empty answer": "empty",
        "placeholder mismatch": "mismatch",
        "unknown format": "unknown",
    }.items():
        assert f" 1 x {kind}: {name}\n" in out
    assert "(training reads 100)" in out
    page = (own / "pages" / "x.html").read_text()
    assert page.count("<article>") == 20
    assert "does not exist" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert "{{ a &amp; b }}" in page and "data:image/jpeg;base64," in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it needs no other file


def test_without_a_config_only_lengths_are_not_judged(own, command):
    code, out, _ = command(own / "good.json")
    assert code == 0 and out.endswith("no problems\n")
    code, out, _ = command(own / "all.json")
    assert code == 1 and "truncated:" not in out and "too long:" not in out and "25 x missing file" in out
    code, out, _ = command(own / "good.json", "--images", own / "nowhere")
    assert code == 1 and "9 x missing file" in out


@pytest.mark.slow
def test_the_configs_block_of_the_file_says_where_images_are(own, command, monkeypatch, caplog):
    (own / "data").mkdir()
    (own / "good.json").rename(own / "data" / "good.json")
    text = CONFIG.format(file="data/good.json", images=own, train="{name: base_instruction}")
    (own / "run.yaml").write_text(text)
    monkeypatch.chdir(own)
    code, out, _ = command(own / "data" / "good.json", "--cfg-path", "run.yaml")
    assert code == 0
    assert not caplog.records
    other = "datasets.instruction.build_info.storage=other.json"
    code, out, _ = command("data/good.json", "--cfg-path", "run.yaml", "--options", other)
    assert code == 1 and "9 x missing file" in out
    assert "no dataset has 'data/good.json' as its storage" in caplog.text


def test_mistakes_on_the_command_line(own, command):
    assert "FILE: 'x.json' is not a file" in command("x.json")[2]
    code, _, err = command(own / "good.json", "--options", "model.max_txt_len=3")
    assert code == 2 and "Set --cfg-path too" in err
    code, _, err = command(own / "good.json", "--page", own)
    assert code == 2 and "--page" in err
    code, _, err = command(own / "good.json", "--tokenizer", own)
    assert code == 2 and "not a folder with a config.json" in err


def test_the_length_of_a_video_that_is_gone_is_that_of_its_frames(own):
    record = {"video": "gone.mp4", "instruction": "What?", "output": "x"}
    (own / "video.json").write_text(json.dumps([record, record | {"video": None}]))
    config = DatasetConfig()
    config.build_info = replace(config.build_info, n_frms=5)
    counter = TokenCounter(load_prompter(ModelConfig(llama_model=str(TINY_LLM))), str(TINY_LLM), limits=False)
    seen, plain = check_file(str(own / "video.json"), None, config, counter).samples
    assert seen.tokens[0] - plain.tokens[0] >= 5 * 32


@pytest.mark.parametrize("values", [[5], [1, 1, 1], [0, 11], [0, 12], [3, 900, 17], list(range(100))])
def test_histograms_count_everything(values):
    lines = histogram(values)
    assert len(lines) <= 13
    counts = [int(line.split()[3]) for line in lines]
    assert sum(counts) == len(values)
    assert max(line.count("#") for line in lines) == 50
