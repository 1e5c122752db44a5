"""Writes the digit-scene world in the formats of MiniGPT-v2's data sets: questions, references and grounded captions.

All pictures have COCO's names and lie in one folder; those of the test part show handwriting that training does not.
"""

import json
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from minigpt4.datasets.formats.annotated import box_text
from minigpt4.tiny.text import PLACES, ask_all, expressions
from minigpt4.tiny.world import SIDE, Fact, Scene, box

V2_SCENES, V2_TEST_SCENES = 4000, 300
REFERENCES = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # data sets, and whose split of them it is
_HUMANS = 10  # answers to each question of VQAv2
_PICKLE = 2  # the protocol of Python 2, which wrote RefCOCO's files


@dataclass(frozen=True)
class Picture:
    """A scene under its COCO id."""

    id: int
    split: str
    scene: Scene

    @property
    def name(self) -> str:
        return f"COCO_train2014_{self.id:012}"

    @property
    def things(self) -> Iterator[tuple[Fact, tuple[int, int, int, int]]]:
        """Every digit with its box [x, y, width, height]."""
        return ((fact, box(look)) for fact, look in zip(self.scene.facts, self.scene.looks, strict=True))


def write_v2(
    folder: Path, train: Sequence[Scene], test: Sequence[Scene], seed: int, jpeg: Callable[[Scene], bytes]
) -> None:
    """Writes `images/`, `vqa/`, `references/` and `grounded/` to train with, and `test/` for the benchmarks."""
    splits = [("train", scene) for scene in train] + [("test", scene) for scene in test]
    pictures = [Picture(i, split, scene) for i, (split, scene) in enumerate(splits, start=1)]
    for picture in pictures:
        _write(folder / "images" / f"{picture.name}.jpg", jpeg(picture.scene))
    seen, held_out = pictures[: len(train)], pictures[len(train) :]
    rng = random.Random(f"{seed}/v2 questions")
    _write_json(folder / "vqa" / "vqa_train.json", list(_questions(rng, seen)))
    for name, split_by in REFERENCES.items():
        _write_references(folder / "references" / name, name, split_by, pictures)
    for name, rows in _grounded(seen).items():
        _write_json(folder / "grounded" / f"{name}.json", rows)
    _write_test(folder / "test", held_out, rng)


def _questions(rng: random.Random, pictures: Sequence[Picture]) -> Iterator[dict[str, Any]]:
    """Questions with short answers, in LAVIS's form: one of every type about each picture."""
    ids = count(1)
    for picture in pictures:
        for asked in ask_all(rng, picture.scene.facts):
            short = asked.answer.partition(",")[0].lower()  # of "Yes, there is a red 7 on the left."
            named = {"image": f"{picture.name}.jpg", "question_id": next(ids), "question_type": asked.question_type}
            yield named | {"question": asked.question, "answer": [short]}


def _write_references(folder: Path, name: str, split_by: str, pictures: Sequence[Picture]) -> None:
    """RefCOCO's form: `refs(SPLITBY).p`, a pickle of plain values, and COCO's `instances.json`."""
    references, annotations, sentences = [], [], count(1)
    for number, (picture, fact, bbox) in enumerate(_things(pictures), start=1):
        named = {"image_id": picture.id, "category_id": fact.digit}
        annotations.append({"id": number, **named, "bbox": bbox, "area": bbox[2] * bbox[3]})
        said = [{"sent_id": next(sentences), "sent": text, "raw": text} for text in expressions(name, fact)]
        file = f"{picture.name}_{number}.jpg"
        numbers = {"ref_id": number, "ann_id": number}
        references.append({**numbers, **named, "file_name": file, "split": picture.split, "sentences": said})
    images = [{"id": p.id, "file_name": f"{p.name}.jpg", "width": SIDE, "height": SIDE} for p in pictures]
    categories = [{"id": digit, "name": str(digit)} for digit in range(10)]
    _write(folder / f"refs({split_by}).p", pickle.dumps(references, _PICKLE))
    _write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": categories})


def _grounded(pictures: Sequence[Picture]) -> dict[str, list[dict[str, Any]]]:
    """Flickr30k's forms: captions with boxes, the phrases of a caption with boxes, and the boxes of a phrase."""
    captions, phrases, boxes = [], [], []
    for picture in pictures:
        named = {"image_id": picture.name}
        # "a red 7", its box and "on the left"
        parts = [
            (f"a {fact.color} {fact.digit}", box_text(bbox, (SIDE, SIDE)), PLACES[fact.position])
            for fact, bbox in picture.things
        ]
        captions.append(
            named | {"grounded_caption": " and ".join(f"<p>{what}</p> {where} {place}" for what, where, place in parts)}
        )
        output = " ".join(f"<p>{what}</p> {where}" for what, where, _ in parts)
        caption = " and ".join(f"{what} {place}" for what, _, place in parts)
        phrases.append(named | {"caption": caption, "output": output})
        boxes += [named | {"phrase": what.removeprefix("a "), "bbox": where} for what, where, _ in parts]
        boxes.append(named | {"phrase": "digits", "bbox": "<delim>".join(where for _, where, _ in parts)})
    return {"groundedcaption": captions, "captiontobbox": phrases, "phrasetobbox": boxes}


def _write_test(folder: Path, pictures: Sequence[Picture], rng: random.Random) -> None:
    """What refcoco, refcoco+, refcocog, vqav2, gqa, vizwiz and own read: that one asks what is in a box."""
    things = list(_things(pictures))
    for name in REFERENCES:
        rows = []
        for number, (picture, fact, bbox) in enumerate(things):
            said = expressions(name, fact)
            named = {"img_id": f"{picture.name}_{number}", "sents": said[number % len(said)]}
            rows.append(named | {"bbox": bbox, "width": SIDE, "height": SIDE})
        _write_json(folder / name / f"{name}_test.json", rows)
    asked = [
        {
            "image": f"{p.name}.jpg",
            "question": f"[identify] {box_text(bbox, (SIDE, SIDE))}",
            "answer": expressions("refcocog", fact)[0],
        }
        for p, fact, bbox in things
    ]
    _write_json(folder / "identify.json", asked)
    questions = list(_questions(rng, pictures))
    _write_vqav2(folder / "vqav2", questions)
    _write_json(folder / "gqa.json", [row | {"answer": row["answer"][0]} for row in questions])  # the original's form
    one_each = list({row["image"]: row for row in rng.sample(questions, len(questions))}.values())
    _write_json(folder / "vizwiz.json", [row | {"answers": _humans(row["answer"][0])} for row in one_each])


def _things(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Fact, tuple[int, int, int, int]]]:
    return ((picture, fact, bbox) for picture in pictures for fact, bbox in picture.things)


def _write_vqav2(folder: Path, asked: list[dict[str, Any]]) -> None:
    questions, annotations = [], []
    for row in asked:
        picture = int(row["image"].rpartition("_")[2].removesuffix(".jpg"))
        named = {"question_id": row["question_id"], "image_id": picture}
        (answer,) = row["answer"]
        kind = {"yes": "yes/no", "no": "yes/no"}.get(answer, "number" if row["question_type"] == "count" else "other")
        questions.append(named | {"question": row["question"]})
        annotations.append(
            named | {"answers": _humans(answer), "question_type": row["question_type"], "answer_type": kind}
        )
    _write_json(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    _write_json(folder / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})


def _humans(answer: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": i + 1} for i in range(_HUMANS)]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_json(path: Path, content: object) -> None:
    _write(path, (json.dumps(content, indent=1) + "\n").encode())
