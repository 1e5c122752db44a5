"""Questions with short answers, as LAVIS's files and OCR-VQA's have them: formats vqa and ocrvqa."""

from collections import Counter
from typing import Any

from minigpt4.common.registry import registry
from minigpt4.datasets.formats.annotated import AnnotatedDataset, Asked, Size
from minigpt4.datasets.formats.values import checked, load_json, text_of, texts_of, value_of, wrong


@registry.register_format("vqa")
class VqaDataset(AnnotatedDataset):
    """`{"image", "question", "answer" or "direct_answers"}`, of several people's answers or one (LAVIS's VQAv2, OK-VQA,
    A-OKVQA and GQA). An answer is as likely as it is often given.
    """

    def picture(self, row: Any) -> str:
        return text_of(row, "image")

    def name(self, row: Any) -> Any:
        return row.get("question_id", super().name(row))

    def asked(self, row: Any, size: Size) -> Asked:
        key = "direct_answers" if "direct_answers" in row else "answer"
        given = [row[key]] if isinstance(row.get(key), str) else texts_of(row, key)
        answers = Counter(self.text_processor(text) for text in given)
        return Asked([self.text_processor(text_of(row, "question"))], answers)


@registry.register_format("ocrvqa")
class OcrVqaDataset(AnnotatedDataset):
    """`{KEY: {"split", "imageURL", "questions", "answers"}}`, of which split 1 is used for training, 2 for validation
    (Mishra et al. 2019).
    """

    def read(self) -> list[Any]:
        rows = []
        for file in self.files:
            for key, entry in checked(load_json(self.key, file), f"{self.key}: '{file}'", dict).items():
                questions = entry.get("questions") if isinstance(entry, dict) else None
                # of a damaged entry there is one sample, to be named
                rows += [(key, entry, i) for i in range(len(questions) if isinstance(questions, list) else 1)]
        return rows

    def used(self, row: Any) -> bool:
        return value_of(row[1], "split", int) == {"train": 1, "val": 2}[self.split]

    def place(self, row: Any, index: int) -> str:
        return f"{super().place(row, index)} ({row[0]})"

    def picture(self, row: Any) -> str:
        key, entry, _ = row
        return f"{key}.{text_of(entry, 'imageURL').split('/')[-1].split('.')[-1]}"

    def name(self, row: Any) -> Any:
        return row[0]

    def asked(self, row: Any, size: Size) -> Asked:
        _, entry, i = row
        questions, answers = texts_of(entry, "questions"), texts_of(entry, "answers")
        if len(questions) != len(answers):
            raise wrong(f"it has {len(questions)} questions and {len(answers)} answers")
        return Asked([self.text_processor(questions[i])], {self.text_processor(answers[i]): 1})
