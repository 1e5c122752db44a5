"""The ranges of numbers in a config, as types for `config.schema`. A number of a plain type may be any finite one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args


@dataclass(frozen=True)
class Range:
    """Which numbers a key takes, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


_NON_NEGATIVE = Range("0 or more", lambda n: n >= 0)
FINITE = Range("a finite number", math.isfinite)

PositiveInt = Annotated[int, Range("1 or more", lambda n: n >= 1)]
NonNegativeInt = Annotated[int, _NON_NEGATIVE]
WorkerCount = Annotated[int, Range("0 to 1024", lambda n: 0 <= n <= 1024)]
NonNegativeFloat = Annotated[float, _NON_NEGATIVE]
PositiveFloat = Annotated[float, Range("more than 0", lambda n: n > 0)]
UnitFloat = Annotated[float, Range("0 to 1", lambda n: 0 <= n <= 1)]
FloatBelow1 = Annotated[float, Range("0 or more and less than 1", lambda n: 0 <= n < 1)]
PositiveUnitFloat = Annotated[float, Range("more than 0 and at most 1", lambda n: 0 < n <= 1)]


def range_of(kind: Any) -> Range:
    """The range of the numbers of a type, such as `list[PositiveFloat] | None`."""
    found = [*getattr(kind, "__metadata__", ()), *map(range_of, get_args(kind))]
    return next((own for own in found if own is not FINITE), FINITE)
