"""The questions of benchmarks/evaluate.py as a task of lmms-eval, which drives the same model."""

import json
import tempfile
from pathlib import Path

from minigpt4.evaluation.benchmark import Benchmark
from minigpt4.evaluation.lmms_eval import MiniGPT4
from minigpt4.inference.engine import Engine

UTILS = """
from PIL import Image
def doc_to_visual(doc): return [Image.open(doc["image"]).convert("RGB")]
def doc_to_text(doc, kwargs=None): return doc["question"]
def doc_to_messages(doc, kwargs=None):
    image = {"type": "image", "url": doc_to_visual(doc)[0]}
    return [{"role": "user", "content": [image, {"type": "text", "text": doc["question"]}]}]
def process_results(doc, results): return {"exact": float(results[0] == doc["answer"])}
"""
TASK = """
task: scenes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs: {{max_new_tokens: {most}, do_sample: false}}
metric_list: [{{metric: exact, aggregation: mean, higher_is_better: true}}]
"""


def by_lmms_eval(engine: Engine, benchmark: Benchmark, size: int, new_tokens: int) -> list[str]:
    """lmms-eval's evaluation of the questions; its answers, in order."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        docs = [
            {"image": str(question.pictures[0]), "question": question.prompt, "answer": question.reference[0]}
            for question in benchmark.questions
        ]
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps(docs))
        (Path(folder) / "utils.py").write_text(UTILS)
        (Path(folder) / "scenes.yaml").write_text(TASK.format(file=file, most=new_tokens))
        found = simple_evaluate(
            model=MiniGPT4(engine=engine, batch_size=size),
            tasks=["scenes"],
            task_manager=TaskManager(include_path=folder),
            batch_size=size,
            bootstrap_iters=0,
            log_samples=True,
        )
    samples = sorted(found["samples"]["scenes"], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]
