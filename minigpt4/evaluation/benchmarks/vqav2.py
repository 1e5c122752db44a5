"""VQAv2 (Goyal et al. 2017): questions about COCO's pictures, ten human answers each."""

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Question
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Source
from minigpt4.evaluation.vqa_scoring import human_answers, vqa_scorers, vqa_tags, with_annotations


@registry.register_benchmark("vqav2")
def vqav2(source: Source) -> Benchmark:
    """A folder with the published questions and annotations of a split, val or train."""
    file = source.split_file("v2_OpenEnded_mscoco_*2014_questions.json", "val")
    split = "train" if "train2014" in file.name else "val"
    annotations = source.listed(file.parent / f"v2_mscoco_{split}2014_annotations.json", "annotations")
    template = source.template(SHORT, "question")
    questions = [
        Question(
            row.id("question_id"),
            template.format(question=row.text("question")),
            (source.picture(f"COCO_{split}2014_{row.id('image_id'):0>12}.jpg"),),
            human_answers(annotation),
            tags=vqa_tags(annotation),
            place=row.place,
        )
        for row, annotation in with_annotations(source.listed(file, "questions"), annotations)
    ]
    return Benchmark(questions, vqa_scorers(), template)
