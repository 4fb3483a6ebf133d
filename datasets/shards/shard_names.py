"""The names of the shards of an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from leoclr.datasets.shards.index_format import COLUMNS_SUFFIX as COLUMNS_SUFFIX
from leoclr.datasets.shards.index_format import SUFFIX as SUFFIX
from leoclr.datasets.shards.index_format import read_json
from leoclr.datasets.shards.labels import NO_LABEL as NO_LABEL


def common_name(names: Sequence[str]) -> str:
    """What the index of these shards is called: the start that their names share, without the number."""
    start = os.path.commonprefix([Path(name).stem for name in names])
    return start.rstrip("0123456789").rstrip("-_.") or "shards"


def shard_names(path: Path) -> list[str]:
    """The file names of the shards that an index file lists, without reading its columns."""
    return [shard.name for shard in read_json(path).shards]
