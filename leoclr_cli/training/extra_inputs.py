"""Between the inputs of a batch and the extras that a method asks for: `leoclr.datasets.loading.extras` and
`leoclr.backends.extras`, which know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from leoclr.backends.extras import Extra, asked
from leoclr.backends.method import Method
from leoclr.cli.config.plugins import import_method
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import policy_problems
from leoclr.datasets.errors import RunError
from leoclr.datasets.loading.extras import LABELS, Extras, place_of
from leoclr.datasets.loading.view_maker import SAMPLES
from leoclr.datasets.shards.index import Index

_INPUTS = {"samples": SAMPLES, "labels": LABELS}  # boxes have one for each view


def extras_of(settings: Settings, index: Index) -> Extras:
    """What the loader is to give. Raises RunError where the method asks for what these views or data do not have."""
    for problem in policy_problems(settings):
        raise RunError(problem)
    names = asked(import_method(settings.backend, settings.views))
    if "labels" in names and not index.class_count:
        raise RunError(f"{settings.backend} takes labels, and none of the {len(index):,} images to train on has one")
    return Extras("boxes" in names, index.label if "labels" in names else None)


def from_inputs(method: Method, inputs: Mapping[str, Tensor], views: Iterable[str]) -> dict[str, Extra]:
    """The arguments of `forward` that a method asks for."""
    found: dict[str, Extra] = {}
    for name in asked(method):
        if name == "boxes":
            found[name] = {view: inputs[place_of(view)] for view in views}
        else:
            found[name] = inputs[_INPUTS[name]]
    return found


def as_inputs(extras: Mapping[str, Extra]) -> dict[str, Tensor]:
    """The same as inputs, for steps without a loader."""
    found: dict[str, Tensor] = {}
    for name, extra in extras.items():
        if isinstance(extra, Tensor):
            found[_INPUTS[name]] = extra
        else:
            found |= {place_of(view): boxes for view, boxes in extra.items()}
    return found
