"""Annotations of LLaVA, VQAv2 and COCO as records that the data set `instruction` reads."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt4.common.errors import UserError, make_folder, writing
from minigpt4.common.files import replace_file
from minigpt4.datasets.formats.records.files import read_records, record_id
from minigpt4.datasets.formats.records.parse import parse_record
from minigpt4.datasets.formats.records.record import RecordError
from minigpt4.evaluation.source import Row, read_json, read_rows
from minigpt4.evaluation.vqa_scoring import human_answers, with_annotations

Records = Iterator[dict[str, Any]]
LeftOut = defaultdict[str, list[str]]  # {kind of problem: "ID: detail" of each record}


def llava(file: str, skipped: LeftOut) -> Records:
    """LLaVA's conversations, one record each: {"id", "image", "instruction": [...], "output": [...]}.

    Args:
        skipped: the records that can't be used are added to it.
    """
    for index, raw in enumerate(read_records("FILE", file)):
        try:
            record = parse_record(raw)
        except RecordError as error:
            skipped[error.kind].append(f"{record_id(raw, index)}: {error.detail}")
            continue
        turns, files = record.conversation.turns, record.conversation.pictures
        names = {kind: [f.name for f in files if f.video == (kind == "video")] for kind in ("image", "video")}
        named = {kind: own[0] if len(own) == 1 else own for kind, own in names.items() if own}
        asked = ["".join(map(_marked, turn.question)) for turn in turns]
        yield {"id": record_id(raw, index), **named, "instruction": asked, "output": [turn.answer for turn in turns]}


def _marked(part: Any) -> str:
    """A question's part, with LLaVA's marker for a picture or a video."""
    return part if isinstance(part, str) else "<video>" if part.video else "<image>"


def vqav2(questions: Path, annotations: Path, prompt: str) -> Records:
    """VQAv2's questions, one record each: {"id", "image", "instruction", "output"}.

    OK-VQA's files are of the same kind. The answer is the one that most of the ten people gave. Pictures have COCO's
    names of 2014, such as COCO_train2014_000000000009.jpg.

    Args:
        prompt: what is asked, with {question} and no other braces in it.

    Raises:
        UserError: the prompt is another one, a file is of another format, or a question has no annotation.
    """
    around = prompt.replace("{question}", "")
    if around == prompt or "{" in around or "}" in around:
        raise UserError(
            f"--prompt: '{prompt}' must hold {{question}}, where the question comes, and no other braces. Set it to "
            "one such as '[vqa] {question}'."
        )
    asked = _object(questions, "questions")
    answered = _object(annotations, "annotations").rows("annotations")
    for question, annotation in with_annotations(asked.rows("questions"), answered):
        [(answer, _)] = Counter(human_answers(annotation)).most_common(1)
        yield {
            "id": question.id("question_id"),
            "image": f"COCO_{asked.text('data_subtype')}_{question.id('image_id'):0>12}.jpg",
            "instruction": prompt.replace("{question}", question.text("question")),
            "output": answer,
        }


def coco(captions: Path, skipped: LeftOut) -> Records:
    """COCO's captions, one record each: {"id", "image", "caption"}.

    The file is one of COCO's own, such as captions_train2017.json, or a list of {"image", "caption"} such as
    coco_karpathy_train.json, where `caption` may be a list.

    Args:
        skipped: the captions that are empty are added to it.

    Raises:
        UserError: the file is of another format, or a caption is of a picture that it does not list.
    """
    whole = read_json(captions)
    if isinstance(whole, list):
        rows = [(row.text("image"), row) for row in read_rows(captions)]
    else:
        file = _object(captions, "images", "annotations")
        names = {image.id("id"): image.text("file_name") for image in file.rows("images")}
        rows = [(_named(names, row), row) for row in file.rows("annotations")]
    for index, (image, row) in enumerate(rows):
        for caption in row.texts("caption") if isinstance(row["caption"], list) else [row.text("caption")]:
            own = row.id("id") if "id" in row else str(index)
            if caption.strip():
                yield {"id": own, "image": image, "caption": caption.strip()}
            else:
                skipped["empty caption"].append(f"{own}: its caption holds no text")


def _object(file: Path, *keys: str) -> Row:
    """A file's JSON object, in which these keys are."""
    found = Row(read_json(file), str(file))
    if lacking := [key for key in keys if key not in found]:
        raise UserError(f"{file}: has no '{lacking[0]}'. Name a file of the published format, which holds it.")
    return found


def _named(names: dict[str, str], row: Row) -> str:
    if (image := row.id("image_id")) not in names:
        raise UserError(f"{row.place}: image {image} is not among the file's images. Download it again.")
    return names[image]


def write_records(records: Records, out: Path) -> int:
    """Writes a JSON list, or JSON lines if the file's name ends in .jsonl; returns how many records.

    Raises:
        UserError: the file is there already, and perhaps what the records are read from; there are no records; or the
            file can't be written.
    """
    if out.exists():
        raise UserError(f"--out: '{out}' is there already. Name a new file, or delete it first.")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if not lines:
        raise UserError("FILE: holds no record that can be used. Name another file.")
    text = "\n".join(lines) if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    make_folder("--out", out.parent)
    with writing("--out", out):
        replace_file(out, (text + "\n").encode(errors="backslashreplace"))
    return len(lines)
