"""Each format of records, as people have it: from the file to a sample with its pictures, and in validate-data."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from minigpt4.common.registry import registry
from minigpt4.config.schema import BuildInfo, DatasetConfig, ProcessorConfig, ProcessorsConfig
from minigpt4.conversation.conversation import Conversation, Turn
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import RecordError
from tests.batches import batch_of

SHOWN = "<Img><ImageHere></Img>"


def png(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def said(*turns: str, roles=("user", "assistant"), role="role", text="content") -> list[dict]:
    return [{role: roles[i % 2], text: turn} for i, turn in enumerate(turns)]


def llava(*turns: str, roles=("human", "gpt")) -> list[dict]:
    return said(*turns, roles=roles, role="from", text="value")


def asked(*parts) -> list[dict]:
    """Messages whose question has parts: a text, or a picture's."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]


RED, BLACK = {"bytes": png(255), "path": None}, {"bytes": png(0), "path": "0.png"}
PLACE, BOTH = {"type": "image"}, ["0.png", "1.png"]
WHAT = [(f"{SHOWN} What?", "Red.")]
TWO = [(f"{SHOWN} and {SHOWN} What?", "Red.")]
EACH = ["<image>\nWhat?", "Red.", "<image>\nWhy?", "So.", "How?\n<image>", "Yes."]
# what it is called, keys by which it is known, record, turns, what is red of its pictures
FORMATS = [
    ("MiniGPT4Qwen", "instruction, output", {"image": "1.png", "instruction": "What?", "output": "Red."}, WHAT, "1"),
    (
        "of several turns",
        "instruction, output",
        {"images": BOTH, "instruction": ["<image> and <image>\nWhat?", "Why?"], "output": ["Red.", "So."]},
        [*TWO, ("Why?", "So.")],
        "01",
    ),
    (
        "Alpaca",
        "instruction, output",
        {"instruction": "Translate.", "input": "Rot", "output": "Red.", "system": "", "history": []},
        [("Translate.\nRot", "Red.")],
        "",
    ),
    (
        "LLaVA",
        "conversations",
        {"image": "1.png", "conversations": llava("<image>\nWhat?", "Red.")},
        WHAT,
        "1",
    ),
    (
        "LLaVA-OneVision",
        "conversations",
        {
            "image": BOTH,
            "conversations": llava("<image> and <image>\nWhat?", "Red."),
        },
        TWO,
        "01",
    ),
    ("role and content", "conversations", {"image": "1.png", "conversations": said("What?", "Red.")}, WHAT, "1"),
    (
        "ShareGPT",
        "conversations",
        {"conversations": llava("Hi.", "Hello.", roles=("Human", "ChatGPT")), "system": "Be brief."},
        [("Be brief.\nHi.", "Hello.")],
        "",
    ),
    (
        "begins with the assistant",
        "conversations",
        {"conversations": llava("Welcome.", "Hi.", "Hello.", roles=("bot", "user"))},
        [("Hi.", "Hello.")],
        "",
    ),
    (
        "Qwen-VL",
        "conversations",
        {"conversations": llava("<img>0.png</img>\nand <img>1.png</img>\nWhat?", "Red.", roles=("user", "assistant"))},
        TWO,
        "01",
    ),
    (
        "the one picture in each turn",
        "conversations",
        {"image": "1.png", "conversations": llava(*EACH)},
        [*WHAT, ("Why?", "So."), ("How?", "Yes.")],
        "1",
    ),
    (
        "OpenAI",
        "messages",
        {"messages": asked({"type": "image_url", "image_url": {"url": "1.png"}}, "What?")},
        WHAT,
        "1",
    ),
    ("Responses", "messages", {"messages": asked({"type": "input_image", "image_url": "1.png"}, "What?")}, WHAT, "1"),
    ("Hugging Face, url", "messages", {"messages": asked({"type": "image", "url": "1.png"}, "What?")}, WHAT, "1"),
    ("Hugging Face, path", "messages", {"messages": asked({"type": "image", "path": "1.png"}, "What?")}, WHAT, "1"),
    ("TRL", "messages", {"messages": asked(PLACE, "and", PLACE, "What?"), "images": BOTH}, TWO, "01"),
    ("TRL's images", "messages", {"messages": asked(PLACE, "and", PLACE, "What?"), "images": [BLACK, RED]}, TWO, "01"),
    ("messages with <image>", "messages", {"messages": said("<image>\nWhat?", "Red."), "images": ["1.png"]}, WHAT, "1"),
    (
        "one image part in each turn",
        "messages",
        {"messages": asked(PLACE, "What?") + asked(PLACE, "Why?"), "images": ["1.png"]},
        [*WHAT, ("Why?", "Red.")],
        "1",
    ),
    ("ms-swift", "query, response", {"query": "<image>\nWhat?", "response": "Red.", "images": ["1.png"]}, WHAT, "1"),
    (
        "ms-swift, history",
        "query, response",
        {
            "system": "Be brief.",
            "history": [["<image> and <image> What?", "Red."], ["Why?", "So."]],
            "query": "Sure?",
            "response": "Yes.",
            "images": BOTH,
        },
        [("Be brief.\n" + TWO[0][0], "Red."), ("Why?", "So."), ("Sure?", "Yes.")],
        "01",
    ),
    ("question and answer", "question, answer", {"image": "1.png", "question": "What?", "answer": "Red."}, WHAT, "1"),
    ("a caption", "image, caption", {"image": "1.png", "caption": "Red."}, [(f"{SHOWN} ", "Red.")], "1"),
    ("a caption as text", "image, text", {"image": RED, "text": "Red."}, [(f"{SHOWN} ", "Red.")], "1"),
    ("a bare picture", "image, text", {"image": png(255), "text": "Red."}, [(f"{SHOWN} ", "Red.")], "1"),
]  # fmt: skip
NAMES = [name for name, *_ in FORMATS]


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "image").mkdir()
    for name, red in (("0", 0), ("1", 255)):
        (tmp_path / "image" / f"{name}.png").write_bytes(png(red))
    return tmp_path


def write(folder: Path, record: dict) -> list[Path]:
    """Files of that record: JSON lines where JSON has its types, Parquet."""
    pq.write_table(pa.Table.from_pylist([record, {"id": "none"}]), folder / "x.parquet")
    try:
        (folder / "x.jsonl").write_text(json.dumps(record))
    except TypeError:
        return [folder / "x.parquet"]
    return [folder / "x.jsonl", folder / "x.parquet"]


def sample_of(file: Path, size: int) -> dict:
    images, text = ProcessorConfig("blip2_image_eval", image_size=size), ProcessorConfig("base_instruction")
    processors = ProcessorsConfig(images, images), ProcessorsConfig(text, text)
    config = DatasetConfig(BuildInfo(str(file)), *processors)
    return registry.get_builder_class("instruction")("instruction", config).build("train")[0]


@pytest.mark.parametrize(("name", "keys", "record", "turns", "pictures"), FORMATS, ids=NAMES)
def test_from_a_file_to_a_sample(name, keys, record, turns, pictures, folder):
    assert parse_record(record).format == keys
    for file in write(folder, record):
        own = sample_of(file, 8)["conversation"]
        texts = ["".join(part if isinstance(part, str) else SHOWN for part in turn.question) for turn in own.turns]
        assert [(text, turn.answer) for text, turn in zip(texts, own.turns, strict=True)] == turns
        assert all(picture.shape == (3, 8, 8) for picture in own.pictures)
        assert "".join(str(int(picture[0].mean() > 0)) for picture in own.pictures) == pictures


def test_validate_data_says_which_format_it_took_each_for(folder, minigpt4):
    records = [record for _, _, record, _, _ in FORMATS if "bytes" not in str(record) and "b'" not in str(record)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    code, out, _ = minigpt4("validate-data", folder / "x.jsonl", "--page", folder / "x.html")
    assert code == 0, out
    counts = (
        "formats: 7 x messages; 7 x conversations; 3 x instruction, output; 2 x query, response; 1 x question, answer"
    )
    assert set(counts[9:].split("; ")) < set(out.split("formats: ")[1].split("\n")[0].split("; "))
    assert "left out: 1 answers before the first question, in 1 records" in out
    assert "<span>conversations</span>" in (folder / "x.html").read_text()


def test_what_is_left_out_and_what_is_not():
    welcome = parse_record({"conversations": llava("Welcome.", "Hi.", "Hello.", roles=("gpt", "human"))})
    assert welcome.conversation == Conversation([Turn(["Hi."], "Hello.")]) and welcome.dropped == 1
    system = [{"role": "system", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]
    assert parse_record({"messages": system}).conversation.turns[0].words == "Say hello."  # somebody asked
    later = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    greeted = parse_record({"messages": system + later})
    (turn,) = greeted.conversation.turns
    assert (turn.words, turn.answer, greeted.dropped) == ("Say hello.\nHi.", "Yes?", 1)
    with pytest.raises(RecordError, match="turns: an answer without a question"):
        parse_record({"messages": said("a", "b") + said("", "c")[1:]})


def test_a_record_that_half_a_character_spoils_is_shown_all_the_same(folder, minigpt4):
    records = [{"id": "half \ud83d", "instruction": "What?", "output": "half \ud83d"}, {"question": "a", "answer": "b"}]
    (folder / "x.json").write_text(json.dumps(records))
    code, out, _ = minigpt4("validate-data", folder / "x.json", "--page", folder / "x.html")
    assert code == 1 and r"1 x unreadable text: half \ud83d" in out
    assert r"half \ud83d" in (folder / "x.html").read_text()


@pytest.mark.slow
def test_the_model_learns_from_a_batch_of_all_formats(folder, parity_model, parity_prompter):
    samples = [sample_of(write(folder, record)[-1], 56)["conversation"] for _, _, record, _, _ in FORMATS]
    with torch.inference_mode():
        assert parity_model(batch_of(parity_prompter, samples))["loss"].isfinite()
