"""Errors that a user can cause and correct. Each is printed as one line.

LeoclrError
├── SettingsError      a value, key or file of the settings
├── DataError          shards, index or images
│   ├── BadImage       an image that cannot be decoded, or must not be
│   └── Missing        nothing at a path or address
├── CheckpointError    a checkpoint or exported file
├── EvaluationError    labels or features that a score cannot be computed from
└── RunError           the run cannot start or continue (device, disk, lock, NaN)
    └── NotKept        a result was printed but cannot be written

A message names the problem, its location and a correct value. The classes are in the lowest layer because every layer
raises some of them. Bugs of leoclr are `assert`s or built-in exceptions, and keep their traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LeoclrError(Exception):
    """Root of all errors that a user can mend. Catch it to catch them all."""


class SettingsError(LeoclrError):
    """A setting is unknown, of the wrong type or out of range, or its file is missing."""


class DataError(LeoclrError):
    """Shards, their index or a folder of images are missing, damaged or not what they claim to be."""


class BadImage(DataError):
    """One image cannot be decoded, or is refused (format, size). Skipped and counted up to a limit."""


class Missing(DataError):
    """There is nothing at this path or address."""


class CheckpointError(LeoclrError):
    """A checkpoint or exported file is missing, damaged, or of another architecture."""


class EvaluationError(LeoclrError):
    """A score cannot be computed: labels are missing, there is one class, features are not finite."""


class RunError(LeoclrError):
    """The run cannot start or cannot go on: device, disk, lock, or a loss that is not finite."""


class NotKept(RunError):
    """A result was printed, but cannot be written to its file."""


def first_fault(error: ValidationError) -> str:
    """The first value of a file that does not fit, as "its.key: what is wrong", for the message of one of these."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join((*([".".join(map(str, first["loc"]))] if first["loc"] else []), message))
