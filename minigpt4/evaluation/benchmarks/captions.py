"""COCO Captions (Chen et al. 2015) and nocaps (Agrawal et al. 2019): a sentence about a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Judged, Prediction, Question, Scores
from minigpt4.evaluation.judging import text_of
from minigpt4.evaluation.metrics import captions
from minigpt4.evaluation.source import Row, Source, as_rows

_PROMPT = "[caption] please describe this image?"
_DOMAINS = ("in-domain", "near-domain", "out-domain")


@registry.register_benchmark("coco_caption")
def coco_caption(source: Source) -> Benchmark:
    """COCO's file of images and annotations, or Karpathy's list of image and captions.

    official: pycocoevalcap after its tokenizer, both programs of Java; CIDEr from 0 to 10.
    """
    names = [
        "captions_val2014.json",
        *(f"coco_karpathy_{split}{end}.json" for split in ("val", "test") for end in ("_gt", "")),
    ]
    return _benchmark(source, source.file(*names))


@registry.register_benchmark("nocaps")
def nocaps(source: Source) -> Benchmark:
    """nocaps_val_4500_captions.json; a domain may be the split. official: as coco_caption, and each domain alone."""
    return _benchmark(source, source.file("nocaps_val_4500_captions.json"), source.split(_DOMAINS))


def _benchmark(source: Source, file: Path, domain: str | None = None) -> Benchmark:
    template = source.template(_PROMPT)
    images, references = _images(source, file)
    questions = [
        Question(
            key,
            template.format(),
            (source.picture(row.text("image" if "image" in row else "file_name")),),
            references[key],
            tags={"domain": row.text("domain")} if "domain" in row else {},
            place=row.place,
        )
        for key, row in images.items()
        if domain in (None, row.get("domain"))
    ]
    return Benchmark(questions, {"official": _official}, template)


def _images(source: Source, file: Path) -> tuple[dict[str, Row], dict[str, list[str]]]:
    """{id: record} of the pictures, and {id: captions}."""
    content = source.json(file)
    if isinstance(content, list):
        rows = {str(int(Path(row.text("image")).stem.rpartition("_")[2])): row for row in as_rows(file, content)}
        return rows, {key: row.texts("caption") for key, row in rows.items()}
    whole = Row(content, str(file))
    references: dict[str, list[str]] = {}
    for row in whole.rows("annotations"):
        references.setdefault(row.id("image_id"), []).append(row.text("caption"))
    return {row.id("id"): row for row in whole.rows("images") if row.id("id") in references}, references


def _official(questions: Sequence[Question], predictions: Mapping[str, Prediction]) -> Scores:
    references = captions.tokenize({question.id: question.reference for question in questions})
    said = captions.tokenize({question.id: [text_of(question, predictions[question.id])] for question in questions})
    meteor = captions.start_meteor()
    found = captions.caption_scores(references, said, meteor)
    domains: dict[str, list[str]] = {}
    for question in questions:
        domains.setdefault(question.tags.get("domain", ""), []).append(question.id)
    details = {"per_image_CIDEr": found.cider, "tokenized_predictions": said}
    scores: dict[str, Any] = dict(found.scores)
    if len(domains) > 1:  # document frequencies are those of the domain
        own = {domain: {key: said[key] for key in keys} for domain, keys in domains.items()}
        scores["per_domain"] = {
            domain: captions.caption_scores(references, part, meteor).scores for domain, part in own.items()
        }
    samples = {key: Judged(value) for key, value in found.cider.items()}
    return Scores(scores, "CIDEr", "fraction", samples, details, graded=True)
