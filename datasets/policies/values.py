"""Types of the settings that view policies share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

_MOST = 32  # views of a kind; more would not fit any machine


def going_up(pair: tuple[float, float]) -> tuple[float, float]:
    """The pair itself; ValueError where its first number is the higher one."""
    low, high = pair
    if low > high:
        raise ValueError("must be two numbers, low then high")
    return pair


Number = Annotated[int, Field(ge=0, le=_MOST)]
PositiveNumber = Annotated[int, Field(ge=1, le=_MOST)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[tuple[Share, Share], AfterValidator(going_up)]
