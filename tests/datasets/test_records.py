"""Records: formats that say the same give the same, and whatever is wrong is said in words."""

import base64
import json
from functools import partial

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minigpt4.common.errors import UserError
from minigpt4.conversation.conversation import Conversation, Turn, joined
from minigpt4.datasets.formats.records.files import image_folder, load_pictures, read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import File, RecordError
from minigpt4.processors.picture_file import open_image
from minigpt4.processors.video import open_video

IMAGE = "<Img><ImageHere></Img>"  # as the original writes a picture


def said(record) -> list[tuple[list, str]]:
    """Questions, as texts and files, and answers."""
    return [(joined(turn.question), turn.answer) for turn in record.conversation.turns]


WORDS = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=20)
ANSWERS = WORDS.filter(str.strip)
TURNS = st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=4)
FILES = st.lists(st.sampled_from(["a.jpg", "b/c.png", "data:;base64,eA=="]), max_size=3)


@pytest.mark.slow
@given(TURNS, FILES)
def test_formats_that_say_the_same_agree(turns, files):
    questions, answers = map(list, zip(*turns, strict=True))
    marked = [" ".join(["<image>"] * len(files) + questions[:1]), *questions[1:]]
    parts = [{"type": "image_url", "image_url": {"url": file}} for file in files]
    conversations = [
        {"from": role, "value": text}
        for q, a in zip(marked, answers, strict=True)
        for role, text in (("human", q), ("gpt", a))
    ]
    messages = [
        {"role": role, "content": text}
        for q, a in zip(questions, answers, strict=True)
        for role, text in (("user", q), ("assistant", a))
    ]
    messages[0]["content"] = [*parts, {"type": "text", "text": questions[0]}]
    first = joined([*(part for file in files for part in (File(file), " ")), questions[0]])
    expected = list(zip([first, *([q] if q else [] for q in questions[1:])], answers, strict=True))
    assert said(parse_record({"images": files, "conversations": conversations})) == expected
    assert said(parse_record({"messages": messages})) == expected
    assert said(parse_record({"images": files, "instruction": questions, "output": answers})) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["<image>", "user", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image_url", "url", "from", "value", "bytes"]), inner
        )
    ),
)
KEYS = ["image", "images", "video", "videos", "instruction", "output", "conversations", "messages", "id", "caption"]
KEYS += ["query", "response", "history", "system", "question", "answer", "input", "text"]


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(KEYS), JSON) | JSON)
def test_whatever_a_file_holds_is_a_record_or_an_error_in_words(raw):
    assert record_id(raw, 7)
    try:
        record = parse_record(raw)
    except RecordError as error:
        assert error.kind in {"unknown format", "turns", "empty answer", "placeholder mismatch"}
        return
    assert all(isinstance(file, File) and file.name for file in record.conversation.pictures)
    assert record.conversation.turns and all(turn.question and turn.answer for turn in record.conversation.turns)


def conversation(*turns: str, **media) -> dict:
    return media | {
        "conversations": [{"from": "gpt" if i % 2 else "human", "value": turn} for i, turn in enumerate(turns)]
    }


def test_placeholders_stay_where_they_are():
    record = parse_record(conversation("Is <image>\nlike\n<image>?", "No.", images=["a", "b"]))
    assert said(record) == [(["Is ", File("a"), " like\n", File("b"), "?"], "No.")]
    for marker in (IMAGE, "<ImageHere>"):
        own = parse_record({"image": "a", "instruction": f"See {marker}\nWhat?", "output": "x"})
        assert said(own) == [(["See ", File("a"), "\nWhat?"], "x")]
    later = parse_record(conversation("Hello.", "Hi.", "<image>\nWhat?", "A dog.", image="a"))
    assert said(later) == [(["Hello."], "Hi."), ([File("a"), " What?"], "A dog.")]


def test_a_picture_shown_again_with_each_question_is_shown_once():
    again = parse_record(conversation("<image>\nA?", "a", "<image>\nB?", "b", "C? <image>", "c", image="x"))
    assert said(again) == [([File("x"), " A?"], "a"), (["B?"], "b"), (["C?"], "c")]


def test_the_systems_words_and_questions_in_a_row_are_one_question():
    roles = [("system", "Be brief."), ("user", "Hm."), ("user", "What?"), ("assistant", "x")]
    record = parse_record({"messages": [{"role": role, "content": text} for role, text in roles]})
    assert said(record) == [(["Be brief.\nHm.\nWhat?"], "x")]


def test_parts_of_messages():
    parts = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image", "image": "b.jpg"},
        {"type": "video_url", "video_url": "c.mp4"},
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "They differ."}]}
    record = parse_record({"messages": [{"role": "user", "content": parts}, answer]})
    question = ["Compare ", File("a.jpg"), " ", File("b.jpg"), " ", File("c.mp4", video=True)]
    assert said(record) == [(question, "They differ.")]


def test_llava_writes_image_for_a_video_too():
    for marker in ("<image>", "<video>"):
        record = parse_record(conversation(f"{marker}\nWhat?", "x", video="a.mp4"))
        assert said(record) == [([File("a.mp4", video=True), " What?"], "x")]


SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text", "unknown format: expected an object"),
        (
            {"id": 3, "caption": "x"},
            "unknown format: it has the keys id, caption; known: messages; conversations; instruction",
        ),
        ({"image": 3, "instruction": "a", "output": "b"}, "unknown format: 3 names no file"),
        ({"instruction": ["a", "b"], "output": "c"}, "turns: 2 instructions, and 1 outputs"),
        ({"instruction": [], "output": []}, "turns: no turns"),
        ({"instruction": "a", "output": 3}, "turns: expected a text, found 3"),
        ({"instruction": "a", "output": " \n"}, "empty answer: the answer of turn 1"),
        ({"image": "a", "instruction": "<image><image>", "output": "b"}, "images named: 1, shown .*: 2"),
        ({"instruction": "<image> a", "output": "b"}, "images named: 0, shown .*: 1"),
        ({"videos": ["a", "b"], "instruction": "<video>", "output": "b"}, "videos named: 2, shown .*: 1"),
        ({"image": "a", "instruction": "a", "output": "<ImageHere>"}, "an answer holds a placeholder"),
        (conversation("a"), "turns: the last question has no answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "turns: an answer without a question"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "turns: 'from' is 'robot'; known: system, human"),
        ({"conversations": "a"}, "unknown format: expected a list of objects, found 'a'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of type 'audio'; known: text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "a"}]}, SAID[1]], "image": "x"},
            "Do one of both",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID[1]]},
            "images named: 0, shown .*: 1",
        ),
        ({"instruction": "a", "output": "half \ud83d"}, r"unreadable text: .* half there .*: 'half \\ud83d'"),
        ({"query": "a", "response": "b", "history": ["a"]}, "turns: 'history' is .* expected .*question, answer"),
        ({"caption": "a dog", **{f"k{i}": i for i in range(20)}}, "it has the keys caption, k0, .*k8; known"),
    ],
)
def test_what_is_wrong_with_a_record(raw, message):
    with pytest.raises(RecordError, match=message):
        parse_record(raw)


RECORDS = [
    {"id": "a", "image": "0.jpg", "instruction": "Two\u2028lines", "output": "x"},
    {"id": 2, "messages": SAID},
    {"conversations": [{"from": "human", "value": "ü"}, {"from": "gpt", "value": "b"}]},
]


def test_json_json_lines_and_parquet_hold_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORDS, indent=1), encoding="utf-8-sig")
    lines = "\r\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8", newline="")
    strings = [record | {"id": str(record.get("id"))} for record in RECORDS]  # a column has one type
    pq.write_table(pa.Table.from_pylist(strings, pa.schema(SCHEMA)), tmp_path / "a.parquet")
    expected = [parse_record(record) for record in RECORDS]
    for name in ("a.json", "a.jsonl", "a.parquet"):
        records = read_records("k", str(tmp_path / name))
        assert [parse_record(record) for record in records] == expected
        assert record_id(records[0], 0) == "a"
    assert [record_id(record, i) for i, record in enumerate(RECORDS)] == ["a", "2", "#2"]


TURN = {"messages": ("role", "content"), "conversations": ("from", "value")}
SCHEMA = [(key, pa.string()) for key in ("id", "image", "instruction", "output")]
SCHEMA += [(key, pa.list_(pa.struct([(k, pa.string()) for k in keys]))) for key, keys in TURN.items()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{]", "a.json is not JSON: .* Write a list of records"),
        ("a.jsonl", b'\n\n{"a"\n{"a": 1}', "a.jsonl: line 3 is not JSON"),
        ("a.json", b"\xff\xfe", "a.json: line 1 is not UTF-8"),
        ("a.json", b"[\xff", "a.json is not UTF-8"),
        ("a.json", b"[]", "a.json: holds no records"),
        ("a.jsonl", b"\n", "a.jsonl: holds no records"),
        ("a.parquet", b"PAR", "a.parquet is not Parquet"),
        ("other", b"", "k: '.*a.json' is not a file"),
    ],
)
def test_files_that_hold_no_records(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_records("k", str(tmp_path / ("a.json" if name == "other" else name)))


def test_a_damaged_line_is_a_record_that_cant_be_used(tmp_path):
    lines = [json.dumps(RECORDS[1]).encode(), b'{"a": ', b'{"a": "\xff"}', b"", json.dumps(RECORDS[0]).encode()]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    first, *bad, last = read_records("k", str(tmp_path / "a.jsonl"))
    assert (first, last) == (RECORDS[1], RECORDS[0]) and record_id(bad[0], 1) == "#1"
    for record, message in zip(bad, ("line 2 is not JSON", "line 3 is not UTF-8"), strict=True):
        with pytest.raises(RecordError, match=f"unreadable line: .*a.jsonl: {message}"):
            parse_record(record)


def test_where_file_names_begin(tmp_path):
    file = tmp_path / "a.json"
    assert image_folder(file, None) == tmp_path
    (tmp_path / "image").mkdir()
    assert image_folder(file, None) == tmp_path / "image"
    assert str(image_folder(file, "/else/where")) == "/else/where"


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (20, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:50])
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    for i in range(10):
        video.write(np.full((32, 32, 3), 20 * i, np.uint8))
    video.release()
    (tmp_path / "bad.avi").write_bytes((tmp_path / "v.avi").read_bytes()[:500])
    return tmp_path


def load(folder, *question, n_frms: int = 4):
    """Reads the files of a question; without words they stand before "What?"."""
    parts = [*question, "What?"] if all(isinstance(part, File) for part in question) else list(question)
    own = Conversation([Turn(parts, "x")])
    return load_pictures(own, folder, open_image, partial(open_video, n_frms=n_frms))


def video(name: str) -> File:
    return File(name, video=True)


def test_pictures_come_in_the_order_of_appearance(folder):
    url = "data:image/png;base64," + base64.b64encode((folder / "1.png").read_bytes()).decode()
    absolute = (folder / "2.png").as_uri()
    own = load(folder, File("0.png"), " then ", video("v.avi"), " then ", File(url), File(absolute))
    shown = "".join(part if isinstance(part, str) else IMAGE for part in own.turns[0].question)
    assert shown == f"{IMAGE} then {' '.join([IMAGE] * 4)} then {IMAGE}{IMAGE}"
    reds = [picture.getpixel((0, 0))[0] for picture in own.pictures]
    assert reds == pytest.approx([0, 0, 40, 100, 140, 80, 160], abs=6)


def test_a_video_of_fewer_frames_gives_all_of_them(folder):
    assert len(load(folder, video("v.avi"), n_frms=64).pictures) == 10
    url = "data:video/avi;base64," + base64.b64encode((folder / "v.avi").read_bytes()).decode()
    assert len(load(folder, video(url)).pictures) == 4


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (File("9.png"), "missing file: .*9.png' does not exist"),
        (File("http://x.org/1.png"), "missing file: 'http://x.org/1.png' is not on this machine"),
        (File("bad.png"), "unreadable image: .*bad.png can't be read as a picture"),
        (File("data:image/png;base64,eA=="), "unreadable image: this can't be read as a picture"),
        (File("data:nothing"), "unreadable image: 'data:nothing'"),
        (
            File("C:\\images\\0.png"),
            "missing file: 'C:.*0.png' is a path of another machine. Write it relative",
        ),
        (File("\\\\server\\0.png"), "missing file: '.*0.png' is a path of another machine"),
        (File("images\\9.png"), "missing file: .*9.png' does not exist"),
        (File("\0"), "file|image"),
        (File("x" * 5000), "file|image"),
        (video("9.avi"), "missing file: .*9.avi"),
        (video("0.png.txt"), "missing file"),
        (video("bad.avi"), "unreadable video: .*bad.avi can't be read as a video"),
    ],
)
def test_files_that_cant_be_opened(file, message, folder):
    with pytest.raises(RecordError, match=message):
        load(folder, file)


def test_windows_separators(folder):
    (folder / "sub").mkdir()
    (folder / "1.png").rename(folder / "sub" / "1.png")
    assert load(folder, File("sub\\1.png")).pictures[0].getpixel((0, 0)) == (80, 0, 0)


def test_pictures_within_parquet(folder):
    image = {"bytes": (folder / "1.png").read_bytes(), "path": "elsewhere.png"}
    record = parse_record({"image": image, "instruction": "What?", "output": "x"})
    (picture,) = load_pictures(record.conversation, folder, open_image, open_video).pictures
    assert picture.getpixel((0, 0)) == (80, 0, 0)
