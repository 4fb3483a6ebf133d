"""Resolve `auto` settings once, by pure functions, before anything is built.

Pixels depend on `augmentation.executor`, if only by rounding. A resumed run therefore keeps what it began with,
whatever device it resumes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from leoclr.cli.config.fields import replaced
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import SettingsError

_MOST_BYTES = 4 << 30
_LARGEST_SIDE = 128
_BEFORE_THERE_WAS_AN_EXECUTOR = "pillow"


class DataFacts(NamedTuple):
    """What is known of the images before they are read.

    Attributes:
        images: How many there are.
        first_size: (height, width) of the first one that can be read; None where there is none.
    """

    images: int
    first_size: tuple[int, int] | None


def settle(settings: Settings, device_type: str, data: DataFacts, recorded: Mapping[str, Any] | None) -> Settings:
    """The settings without `auto` for `augmentation.executor` and `data.resident`.

    Args:
        device_type: "cpu" or "cuda".
        recorded: The settings in the run.json of a run that is resumed.

    Raises:
        SettingsError: Images are to be resident and something other than the device makes the views.
    """
    executor = _executor(settings, device_type, recorded)
    resident = _resident(settings, executor, device_type, data, recorded)
    if resident == "yes" and executor != "device":
        raise SettingsError(
            f"data.resident yes crops on the device; augmentation.executor is {executor} and must be device too"
        )
    return replaced(settings, {"augmentation.executor": executor, "data.resident": resident})


def _executor(settings: Settings, device_type: str, recorded: Mapping[str, Any] | None) -> str:
    if settings.augmentation.executor != "auto":
        return settings.augmentation.executor
    if recorded is not None:
        return str(recorded["augmentation"].get("executor", _BEFORE_THERE_WAS_AN_EXECUTOR))
    return "device" if device_type == "cuda" or settings.data.resident == "yes" else "fast"


def _resident(
    settings: Settings, executor: str, device_type: str, data: DataFacts, recorded: Mapping[str, Any] | None
) -> Literal["yes", "no"]:
    wanted = settings.data.resident
    if wanted == "auto" and recorded is not None:
        wanted = recorded["data"].get("resident", "no")
    if wanted != "auto":
        return wanted
    if device_type != "cuda" or executor != "device" or settings.augmentation.reduced_decoding:
        return "no"
    size = data.first_size
    if size is None or max(size) > _LARGEST_SIDE or data.images * size[0] * size[1] * 3 > _MOST_BYTES:
        return "no"
    return "yes"
