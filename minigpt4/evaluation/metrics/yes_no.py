"""Yes or no: what an answer says, and scores over many.

Sources: evaluate.py of POPE, calculation.py of MME, lmms-eval.
"""

from collections.abc import Sequence

_EPS = 1e-6  # of the copies of POPE's scorer that tolerate a model that never says yes
_NO = ("No", "not", "no")


def pope_answer(text: str) -> str:
    """POPE's rule: "no" where the first sentence has the word No, no or not, else "yes"; so NO and "" are yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in _NO for word in words) else "yes"


def mme_answer(text: str) -> str:
    """MME's rule: yes, or else no, within the first 4 characters, in any case; else "other"."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def lmms_eval_mme_answer(text: str) -> str:
    """lmms-eval's rule for MME: as `mme_answer` after full stops and outer spaces are gone; y and n count."""
    text = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text, mme_answer(text))


def counts(said: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """True and false positives and negatives; yes is positive."""
    pairs = list(zip(said, labels, strict=True))
    names = {"TP": ("yes", "yes"), "FP": ("yes", "no"), "TN": ("no", "no"), "FN": ("no", "yes")}
    return {name: pairs.count(pair) for name, pair in names.items()}


def pope_scores(found: dict[str, int]) -> dict[str, float]:
    """POPE's scores of one split, as fractions. What would be divided by zero is 0."""
    tp, fp, tn, fn = (found[key] for key in ("TP", "FP", "TN", "FN"))
    total = tp + fp + tn + fn
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    return {
        "accuracy": (tp + tn) / total,
        "precision": precision,
        "recall": recall,
        "f1_score": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": (tp + fp) / total,
    }


def pope_scores_with_eps(found: dict[str, int]) -> dict[str, float]:
    """The same with 1e-6 added to each divisor."""
    tp, fp, fn = (found[key] for key in ("TP", "FP", "FN"))
    precision, recall = tp / (tp + fp + _EPS), tp / (tp + fn + _EPS)
    plain = pope_scores(found)
    return {
        "accuracy": plain["accuracy"],
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall + _EPS),
        "yes_ratio": plain["yes_ratio"],
    }
