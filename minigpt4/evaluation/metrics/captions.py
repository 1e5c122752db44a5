"""Caption metrics, by pycocoevalcap (coco-caption): BLEU-1..4, ROUGE-L, CIDEr, and METEOR.

Its tokenizer (Stanford's PTB tokenizer) and METEOR are Java programs; the others take tokens that are there already.
"""

import contextlib
import io
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minigpt4.common.errors import UserError

logger = logging.getLogger(__name__)

Captions = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores over all captions, and each caption's CIDEr (0 to 10)."""

    scores: dict[str, float]
    cider: dict[str, float]


def tokenize(captions: Captions) -> dict[str, list[str]]:
    """{id: captions as lower-case tokens joined by spaces, without punctuation}.

    Raises:
        UserError: pycocoevalcap or Java is not installed.
    """
    _require_library()
    if not shutil.which("java"):
        raise UserError("captions: their tokenizer needs Java. Install one, for example: apt install default-jre")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({key: [{"caption": text} for text in texts] for key, texts in captions.items()})


def caption_scores(references: Captions, predictions: Captions, meteor: bool = True) -> CaptionScores:
    """Scores tokenized captions. CIDEr's document frequencies come from these references: a subset scores differently.

    Args:
        references: {id: tokenized captions of humans}.
        predictions: {id: [the tokenized caption]}, of the same ids.
        meteor: METEOR too, where there is Java.

    Raises:
        UserError: pycocoevalcap is not installed.
    """
    _require_library()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gold = {key: list(references[key]) for key in predictions}
    said = {key: list(texts) for key, texts in predictions.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its lengths
        bleu, _ = Bleu(4).compute_score(gold, said, verbose=0)
    cider, each = Cider().compute_score(gold, said)
    scores = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, 1)}
    if meteor and (found := _meteor(gold, said)) is not None:
        scores["METEOR"] = found
    scores |= {"ROUGE_L": float(Rouge().compute_score(gold, said)[0]), "CIDEr": float(cider)}
    return CaptionScores(scores, dict(zip(gold, map(float, each), strict=True)))


def _meteor(gold: dict[str, list[str]], said: dict[str, list[str]]) -> float | None:
    if not shutil.which("java"):
        logger.warning("captions: METEOR is left out, it needs Java")
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    return float(Meteor().compute_score(gold, said)[0])


def _require_library() -> None:
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise UserError("captions: need pycocoevalcap. Install it: pip install 'minigpt4[evaluation]'") from error
