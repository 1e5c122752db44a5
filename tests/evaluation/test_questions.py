"""What benchmarks ask: the original's exact prompts, pictures by their published names, references and choices."""

import base64

import pytest

from minigpt4.common.registry import registry
from minigpt4.config.schema import EvaluationDatasetConfig
from minigpt4.evaluation.benchmark import load_benchmark
from tests.evaluation import DATA, VARIANTS, load, read_lines

BEFORE, AFTER = "<s>[INST] <Img><ImageHere></Img> ", " [/INST]"
SENT = [  # benchmark, what it reads, what the original sent
    ("okvqa", "okvqa", "okvqa/minigpt4_prompts.jsonl"),
    ("vizwiz", "vizwiz", "vizwiz/minigpt4_prompts.jsonl"),
    ("gqa", "gqa/minigpt4_style_testdev_balanced_questions.json", "gqa/minigpt4_prompts.jsonl"),
    ("gqa", "gqa/val_all_questions.json", "gqa/minigpt4_prompts.jsonl"),
    ("iconvqa", "iconqa/choose_text_val.json", "iconqa/minigpt4_prompts.jsonl"),
    ("vsr", "vsr", "vsr/minigpt4_prompts.jsonl"),
    ("hm", "hateful_memes", "hateful_memes/minigpt4_prompts.jsonl"),
    *((name, "refcoco", f"refcoco/minigpt4_prompts_{name}.jsonl") for name in ("refcoco", "refcoco+", "refcocog")),
]
SHORT = "[vqa] Based on the image, respond to this question with a short answer: "
LAST = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(("kind", "path", "sent"), SENT)
def test_prompts_and_pictures_are_the_originals(kind, path, sent):
    found = [(str(q.pictures[0]), q.prompt) for q in load(kind, VARIANTS / path, img_path="/img").questions]
    theirs = [(row["image"], row["prompt"]) for row in read_lines(VARIANTS / sent)]
    assert sorted(found) == sorted((image, prompt.removeprefix(BEFORE).removesuffix(AFTER)) for image, prompt in theirs)


def test_candidates_are_the_originals():
    benchmark = load("iconvqa", VARIANTS / "iconqa" / "choose_text_val.json")
    theirs = [
        row["candidates"][: row["num_cand"]] for row in read_lines(VARIANTS / "iconqa" / "minigpt4_prompts.jsonl")
    ]
    assert [list(question.choices) for question in benchmark.questions] == theirs
    assert all(benchmark.ranked(question) for question in benchmark.questions)


@pytest.mark.parametrize(
    ("kind", "path", "prompt", "picture"),
    [
        ("vqav2", "vqav2", f"{SHORT}What is number 0?", "COCO_val2014_000000062390.jpg"),
        ("textvqa", "textvqa", f"{SHORT}what is number 0?", "bdcb0cc14bd38d14.jpg"),
        ("aokvqa", "aokvqa", f"{SHORT}Why 0?", "000000427799.jpg"),
        ("pope", "pope", "[vqa] Is there a sign in the image? Answer yes or no.", "COCO_val2014_000000000000.jpg"),
        ("mme", "mme", "[vqa] Is it 0? Please answer yes or no.", "existence/0000.jpg"),
        ("scienceqa", "scienceqa", f"A hint.\nWhich 0?\nA. T-shirt 0\nB. child 1\n{LAST}", "test/0/image.png"),
        ("seedbench", "seedbench", f"How many 0?\nA. one\nB. two\nC. three\nD. four\n{LAST}", "0"),
        ("coco_caption", "coco_caption", "[caption] please describe this image?", "COCO_val2014_000000014959.jpg"),
        ("nocaps", "variants/nocaps", "[caption] please describe this image?", "791c74182202e1f0.jpg"),
    ],
)  # fmt: skip
def test_prompts_and_pictures_of_the_others(kind, path, prompt, picture):
    question = load(kind, DATA / path, img_path="/img").questions[0]
    assert question.prompt == prompt and [str(file) for file in question.pictures] == [f"/img/{picture}"]


def test_every_kind_loads_and_can_be_limited():
    kinds = {kind for kind, *_ in SENT} | {"vqav2", "textvqa", "aokvqa", "pope", "mme", "scienceqa", "seedbench"}
    assert set(registry.names("benchmark")) == kinds | {"mmbench", "coco_caption", "nocaps", "own"}
    assert [question.id for question in load("pope", DATA / "pope", limit=2).questions] == ["random/1", "random/2"]


def test_questions_without_a_picture_have_none():
    asked = load("scienceqa", DATA / "scienceqa").questions
    assert {question.tags["has_image"]: len(question.pictures) for question in asked} == {"True": 1, "False": 0}
    assert asked[1].prompt.startswith("Which 1?\nA. ")


def test_mmbench_holds_its_pictures(tmp_path):
    head = "index\tquestion\thint\tA\tB\tanswer\tcategory\tl2-category\tsplit\timage\n"
    picture = base64.b64encode(b"picture").decode()
    (tmp_path / "MMBench_DEV_EN.tsv").write_text(
        f"{head}3\tWhat?\tLook.\tx\ty\tB\tc\tl\tdev\t{picture}\n1000003\tWhat?\t\ty\tx\tA\tc\tl\tdev\t3\n"
    )
    first, rotated = load("mmbench", tmp_path).questions
    assert first.pictures == rotated.pictures == (b"picture",)
    assert first.prompt == f"Look.\nWhat?\nA. x\nB. y\n{LAST}" and rotated.prompt == f"What?\nA. y\nB. x\n{LAST}"


def test_options_of_mmbench_keep_their_letters(tmp_path):
    head = "index\tquestion\tA\tB\tD\tanswer\tcategory\tl2-category\tsplit\timage\n"
    (tmp_path / "MMBench_DEV_EN.tsv").write_text(f"{head}3\tWhat?\tx\ty\tz\tD\tc\tl\tdev\tYQ==\n")
    (question,) = load("mmbench", tmp_path).questions
    assert question.prompt == f"What?\nA. x\nB. y\nD. z\n{LAST}"


def test_videos_are_no_pictures():
    videos = [q for q in load("seedbench", VARIANTS / "seedbench").questions if q.tags["data"] == "video"]
    assert videos and all(q.videos and not q.pictures for q in videos)


def test_iconqas_own_files_have_pictures_as_candidates():
    benchmark = load("iconvqa", VARIANTS / "iconqa", img_path="/img")
    text, image, blank = (
        next(question for question in benchmark.questions if question.tags["task"] == task)
        for task in ("choose_txt", "choose_img", "fill_in_blank")
    )
    assert str(text.pictures[0]) == f"/img/val/choose_txt/{text.id}/image.png"
    assert len(image.pictures) == len(image.choices) + 1 > 2 and benchmark.ranked(image)
    assert len(blank.pictures) == 1 and not benchmark.ranked(blank)


def test_a_prompt_may_be_replaced_and_another_method_chosen():
    benchmark = load("scienceqa", DATA / "scienceqa", prompt="{question} ({choices})", method="rank")
    assert benchmark.questions[0].prompt == "Which 0? (A. T-shirt 0\nB. child 1)" and benchmark.prompt.startswith("{qu")
    assert benchmark.ranked(benchmark.questions[0]) and benchmark.questions[0].choices == ("A", "B")
    assert benchmark.score({"0": 1}).samples["0"].value == 1  # the candidate's number


def test_a_block_may_have_its_own_name():
    block = EvaluationDatasetConfig(str(DATA / "pope"), benchmark="pope", split="popular")
    benchmark = load_benchmark("objects", block)
    assert (benchmark.name, benchmark.kind, len(benchmark.questions)) == ("objects", "pope", 12)


def test_vsr_from_the_hub(monkeypatch):
    """As the original's config names it."""
    asked = []

    def download(*names, repo_type):
        asked.append((*names, repo_type))
        return str(VARIANTS / "vsr" / "test.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(load("vsr", "cambridgeltl/vsr_zeroshot").questions) == 16
    assert asked == [("cambridgeltl/vsr_zeroshot", "test.jsonl", "dataset")]
