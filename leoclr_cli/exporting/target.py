"""`Target`, the interface of export formats: a check, a writer, and a reader that computes features from the file."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from leoclr.cli.run.encoders import LoadedEncoder

Network = Callable[[Tensor], Tensor]
Transform = Callable[[Image.Image], Tensor]


class ExportOptions(NamedTuple):
    """What the user may ask of a format.

    Attributes:
        license: Identifier for the model card, such as "cc-by-4.0"; None leaves it open.
        views: Whether the model card shows views of training images.
        preprocessing: Whether an ONNX graph takes raw pixels and resizes, crops and normalises them itself.
    """

    license: str | None = None
    views: bool = True
    preprocessing: bool = False


DEFAULTS = ExportOptions()


class Target(ABC):
    """One encoder in one format."""

    def __init__(self, encoder: LoadedEncoder, options: ExportOptions = DEFAULTS) -> None:
        self.encoder, self.options = encoder, options

    @abstractmethod
    def check(self) -> None:
        """Refuse, before anything is written, an encoder that the format cannot hold and an extra that is missing."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the file, which is replaced, or fill the folder, which exists."""

    @abstractmethod
    def open(self, path: Path) -> Network:
        """Images to features, a row each, computed by the library that the file is for, from the file alone."""

    def stale(self, path: Path) -> tuple[str, ...]:
        """Names of files in the folder that an earlier export wrote and that go unless they are written again."""
        return ()

    def reference(self) -> Network:
        """What `open` gives, computed by the encoder itself."""
        return copy.deepcopy(self.encoder.backbone).cpu().eval()

    @abstractmethod
    def usage(self, path: Path) -> tuple[str, ...]:
        """Lines of Python that do the same."""

    def preprocessing(self, path: Path) -> Transform | None:
        """The preprocessing of the file or of the library that it is for; None where they bring none."""
        return None
