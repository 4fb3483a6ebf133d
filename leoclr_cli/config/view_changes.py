"""The changes of single views to the augmentations, checked like the settings that they replace."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from leoclr.cli.config.sections import AugmentationSettings
from leoclr.datasets.views import ViewPolicy

_SHARED = ("executor", "reduced_decoding", "mean", "std")  # all views have the same
_STRONG = "strong"  # no setting: `AugmentationSpec` has it


def wrong_changes(policy: ViewPolicy, augmentation: AugmentationSettings) -> Iterator[str]:
    """A line for each change of a view that no augmentation has, or that is out of its range."""
    possible = [key for key in AugmentationSettings.model_fields if key not in _SHARED]
    for name, view in policy.views.items():
        if not view.changes:
            continue
        where = f"views {policy.name}: changes of {name}"
        unknown = [key for key in view.changes if key not in (*possible, _STRONG)]
        yield from (f"{where}: {key!r} is none; there are {', '.join((*possible, _STRONG))}" for key in unknown)
        known = {key: value for key, value in view.changes.items() if key in possible}
        try:
            AugmentationSettings.model_validate(augmentation.model_dump() | known)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
            yield f"{where}: {'.'.join(map(str, first['loc']))} {message}, got {first['input']!r}"
