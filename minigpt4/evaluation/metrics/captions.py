"""Caption metrics, by pycocoevalcap (coco-caption): BLEU-1..4, ROUGE-L, CIDEr, and METEOR.

Its tokenizer (Stanford's PTB tokenizer) and METEOR are Java programs; the others take tokens that are there already.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def start_meteor() -> Any:
    """METEOR, a Java program that takes seconds to start; None, with a note in the log, where there is no Java.

    Raises:
        UserError: pycocoevalcap is not installed.
    """
    _require_library()
    if not shutil.which("java"):
        logger.warning("captions: METEOR is left out, it needs Java")
        return None
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def caption_scores(references: Captions, predictions: Captions, meteor: Any = None) -> CaptionScores:
    """Scores tokenized captions. CIDEr's document frequencies come from these references: a subset scores differently.

    Args:
        references: {id: tokenized captions of humans}.
        predictions: {id: [the tokenized caption]}, of the same ids.
        meteor: of `start_meteor`; without it METEOR is left out.

    Raises:
        UserError: pycocoevalcap is not installed.
    """
    _require_library()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gold = {key: list(references[key]) for key in predictions}
    said = {key: list(texts) for key, texts in predictions.items()}
    bleu, _ = Bleu(4).compute_score(gold, said, verbose=0)
    cider, each = Cider().compute_score(gold, said)
    scores = {f"Bleu_{n}": float(score) for n, score in enumerate(bleu, 1)}
    if meteor:
        scores["METEOR"] = float(meteor.compute_score(gold, said)[0])
    scores |= {"ROUGE_L": float(Rouge().compute_score(gold, said)[0]), "CIDEr": float(cider)}
    return CaptionScores(scores, dict(zip(gold, map(float, each), strict=True)))


def _require_library() -> None:
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError as error:
        raise UserError("captions: need pycocoevalcap. Install it: pip install 'minigpt4[evaluation]'") from error
