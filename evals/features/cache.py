"""Cache of features on disk, so that further scores of an encoder need no forward pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from leoclr.datasets.shards.index import Index
from leoclr.evals.features.extract import Features
from leoclr.evals.features.preprocessing import Preprocessing
from leoclr.evals.features.stored import read_features, write_features

DEFAULT_LIMIT = 8 * 2**30
_FORMAT = 1
_SUFFIX = ".safetensors"


def feature_key(encoder_identity: str, data_digest: str, preprocessing: Preprocessing, arithmetic: str) -> str:
    """SHA-256 of all that decides the features.

    Args:
        encoder_identity: Digest of the weights, and the architecture that they are in.
        arithmetic: Precision and kind of device: a GPU's float32 convolutions round to TF32. The batch size is no
            part of the key, as it changes the last bits of a float32 and no more.
    """
    parts = [_FORMAT, encoder_identity, data_digest, preprocessing.protocol, arithmetic]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class FeatureCache:
    """A folder of feature files, one per key, bounded in bytes: the longest unused go first.

    Args:
        folder: Made when first written to.
        limit: Bytes that the files may take together; a larger set of features is not stored.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit

    def load(self, key: str, index: Index) -> Features | None:
        """The features stored under `key`, which are those of the samples of `index`; None where there are none, or
        where the file is damaged."""
        path = self._path(key)
        try:
            features = read_features(path, index)
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return features

    def store(self, key: str, features: Features) -> None:
        """Keep features under `key`, as a whole or not at all. A disk that is full or read-only is no error here:
        the features are merely computed again next time."""
        if features.features.nbytes > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_features(self._path(key), features)
        except OSError:
            return
        with contextlib.suppress(OSError):  # another process makes room, too, or files are somebody else's
            self._evict(self._path(key))

    def _evict(self, newest: Path) -> None:
        files = {path: path.stat() for path in self.folder.glob(f"*{_SUFFIX}")}
        total = sum(file.st_size for file in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total <= self.limit or path == newest:
                return
            path.unlink(missing_ok=True)
            total -= files[path].st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"
