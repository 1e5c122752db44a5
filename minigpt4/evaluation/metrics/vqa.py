"""Accuracy against several human answers, and the normalisers that make answers alike before they are compared.

Sources: vqaEval.py of GT-Vision-Lab/VQA (VQAv2, OK-VQA); its copy in the original MiniGPT-4; EvalAIAnswerProcessor and
TextVQAAccuracyEvaluator of mmf's M4C (TextVQA, and by lmms-eval VizWiz); eval_vqa.py of the original (VizWiz).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MOST_PERIODS = 32  # the official code passes a flag where the count of replacements belongs
_KEPT = 100_000  # texts: most answers are given again and again
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_DIGITS)}
_ARTICLES = ("a", "an", "the")

# written without their apostrophe, these get it back
_ONE_APOSTROPHE = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
# these only where exactly one of their apostrophes is missing
_MORE_APOSTROPHES = """couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll y'all'd've 'ow's'at"""


def _contractions() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _MORE_APOSTROPHES.split():
        places = [i for i, letter in enumerate(word) if letter == "'"]
        found |= {word[:i] + word[i + 1 :]: word for i in places}
    return found | {"somebody'd": "somebodyd"}  # the official table's slip


CONTRACTIONS = _contractions()


def one_line(text: str) -> str:
    """What is compared where no more is normalised: line breaks and tabs are spaces, the ends are stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(_KEPT)
def normalise(text: str) -> str:
    """The official VQA normaliser: punctuation, full stops, number words, articles, contractions, lower case."""
    text = one_line(text)
    plain = text
    numbers_with_commas = re.search(r"\d,\d", text)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or numbers_with_commas else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(_KEPT)
def evalai(text: str) -> str:
    """EvalAI's normaliser: `normalise` after commas and question marks are deleted, and 's stands alone."""
    return normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def agreement(prediction: str, answers: Sequence[str]) -> float:
    """The mean over the humans of min(1, matches among the others / 3). All strings are compared as they are."""
    matches = sum(answer == prediction for answer in answers)
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, n / 3) for n in others) / len(answers)


def official_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQAv2's and OK-VQA's accuracy. Where all humans wrote the same, nothing is normalised on either side."""
    prediction, answers = one_line(prediction), [one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    return agreement(prediction, answers)


def original_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The same by the original's copy, which ignores case; its script lower-cases and strips the answer first."""
    prediction = prediction.lower().replace("<unk>", "").strip()
    prediction, answers = one_line(prediction), [one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    return agreement(prediction.lower(), [answer.lower() for answer in answers])


def evalai_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy (M4C), and VizWiz's as lmms-eval computes it: EvalAI's normaliser, then `agreement`."""
    return agreement(evalai(prediction), [evalai(answer) for answer in answers])


def third_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """min(1, equal answers / 3), nothing normalised: A-OKVQA's direct answers."""
    return min(1.0, sum(answer == prediction for answer in answers) / 3)
