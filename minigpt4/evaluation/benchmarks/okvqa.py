"""OK-VQA (Marino et al. 2019): questions that need knowledge from outside the picture, ten human answers each."""

from minigpt4.common.registry import registry
from minigpt4.evaluation.benchmark import Benchmark, Question
from minigpt4.evaluation.prompts import SHORT
from minigpt4.evaluation.source import Source
from minigpt4.evaluation.vqa_scoring import human_answers, vqa_scorers, vqa_tags, with_annotations

_SPLIT = "okvqa_test_split.json"  # the original's list of questions, without which all are asked


@registry.register_benchmark("okvqa")
def okvqa(source: Source) -> Benchmark:
    """A folder with the published questions and annotations; pictures are named by the twelve digits of their id."""
    names = [f"mscoco_val2014_annotations{clean}.json" for clean in ("_clean", "")]
    file = next((source.folder / name for name in names if (source.folder / name).is_file()), source.folder / names[1])
    annotations = source.listed(file, "annotations")
    split = source.folder / _SPLIT
    if split.is_file():
        rows = source.rows(split)
    else:
        file = source.folder / file.name.replace("mscoco_val2014_annotations", "OpenEnded_mscoco_val2014_questions")
        rows = source.listed(file, "questions")
    template = source.template(SHORT, "question")
    questions = [
        Question(
            row.id("question_id"),
            template.format(question=row.text("question")),
            (source.picture(f"{row.id('image_id'):0>12}.jpg"),),
            human_answers(annotation),
            tags=vqa_tags(annotation),
            place=row.place,
        )
        for row, annotation in with_annotations(rows, annotations)
    ]
    return Benchmark(questions, vqa_scorers(), template)
