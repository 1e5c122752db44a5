"""Questions with short answers, as LAVIS's files and OCR-VQA's have them: formats vqa and ocrvqa."""

from collections import Counter
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, load_json


@registry.register_format("vqa")
class VqaDataset(AnnotatedDataset):
    """`{"image", "question", "answer" or "direct_answers"}`, of several people's answers or one (LAVIS's VQAv2, OK-VQA,
    A-OKVQA and GQA). An answer is as likely as it is often given.
    """

    def picture(self, row: Any) -> str:
        """COCO's files have one folder; GQA's keep theirs."""
        name: str = row["image"]
        folder, _, last = name.rpartition("/")
        return last if folder.split("/")[-1] in ("train2014", "val2014", "train2017", "val2017") else name

    def name(self, row: Any) -> Any:
        return row.get("question_id", super().name(row))

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        given = row["direct_answers"] if "direct_answers" in row else row["answer"]
        counts = Counter([given] if isinstance(given, str) else given)
        if not counts:
            raise ValueError("it has no answer")
        answers: Counter[str] = Counter()
        for text, count in counts.items():
            answers[self.text_processor(text)] += count
        return Asked([self.text_processor(row["question"])], answers)


@registry.register_format("ocrvqa")
class OcrVqaDataset(AnnotatedDataset):
    """`{KEY: {"split", "imageURL", "questions", "answers"}}`, of which split 1 is used (Mishra et al. 2019)."""

    def read(self) -> list[Any]:
        rows = []
        for file in self.files:
            for key, entry in load_json(self.key, file).items():
                if entry["split"] == 1:
                    rows += [(key, entry, i) for i in range(max(len(entry["questions"]), len(entry["answers"])))]
        return rows

    def picture(self, row: Any) -> str:
        key, entry, _ = row
        return f"{key}.{entry['imageURL'].split('/')[-1].split('.')[-1]}"

    def name(self, row: Any) -> Any:
        return row[0]

    def asked(self, row: Any, size: tuple[int, int]) -> Asked:
        _, entry, i = row
        if len(entry["questions"]) != len(entry["answers"]):
            raise ValueError(f"{len(entry['questions'])} questions and {len(entry['answers'])} answers")
        return Asked([self.text_processor(entry["questions"][i])], {self.text_processor(entry["answers"][i]): 1})
