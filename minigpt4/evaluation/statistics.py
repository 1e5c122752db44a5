"""How sure a score is: standard errors, and intervals by the bootstrap (Efron and Tibshirani 1993, chapter 13)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_CHUNK = 4_000_000  # numbers drawn at once, of 8 bytes


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error and its interval of 95 %."""

    mean: float
    standard_error: float
    low: float
    high: float

    def json(self) -> dict[str, object]:
        return {"mean": self.mean, "standard_error": self.standard_error, "interval_95": [self.low, self.high]}


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a question, with questions drawn with replacement; the same for the same values.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values")
    own = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    rows = max(_CHUNK // len(own), 1)
    means = np.concatenate(
        [
            own[rng.integers(len(own), size=(min(rows, _RESAMPLES - start), len(own)))].mean(axis=1)
            for start in range(0, _RESAMPLES, rows)
        ]
    )
    error = own.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else 0.0
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(own.mean()), float(error), float(low), float(high))
