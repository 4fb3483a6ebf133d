"""Cache for training on remote shards, and a check that it is large enough."""

from __future__ import annotations

from pathlib import Path

from leoclr.cli.config.sections import RunSettings
from leoclr.cli.config.settings import Settings
from leoclr.datasets.errors import RunError
from leoclr.datasets.shards.index import Index
from leoclr.datasets.storage.addresses import folder_of, is_remote
from leoclr.datasets.storage.block_cache import BlockCache

_GIB = 1 << 30


def block_cache(settings: RunSettings) -> BlockCache:
    """The cache for blocks of remote shards."""
    folder = None if settings.cache == "auto" else Path(settings.cache).expanduser()
    return BlockCache(folder, int(settings.cache_gib * _GIB))


def check_cache(settings: Settings, index: Index) -> None:
    """Raise RunError where a full shuffle, or a window, goes back and forth in more remote bytes than the cache holds:
    blocks would be fetched again for nearly every sample. The order is never changed silently to make it fit."""
    from leoclr.datasets.shards.remote import fitting_window, working_set

    cache, window = block_cache(settings.run), settings.data.shuffle_window
    needed = working_set(index, window)
    if needed <= cache.limit * 7 // 8:  # eviction begins before the limit is reached
        return
    mixed = f"windows of {window:,} samples" if window else "a full shuffle"
    fitting = fitting_window(index, cache.limit * 7 // 8)
    remedies = [f"--set data.shuffle_window={fitting}"] if fitting else []
    remedies.append(f"--set run.cache_gib={-(-needed * 8 // 7 // _GIB) + 1}")
    raise RunError(
        f"{mixed} of remote shards goes back and forth in {needed / _GIB:,.1f} GiB, and the cache holds "
        f"{cache.limit / _GIB:,.1f} GiB; use {' or '.join(remedies)}"
    )


def cache_line(settings: Settings, index: Index) -> str:
    """Where remote shards are read from, and through what; "" where all are local."""
    from leoclr.datasets.shards.remote import working_set

    folders = sorted({folder_of(shard.path) for shard in index.shards if is_remote(shard.path)})
    if not folders:
        return ""
    cache, needed = block_cache(settings.run), working_set(index, settings.data.shuffle_window)
    return (
        f"shards from {', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''}, through a cache of at most "
        f"{cache.limit / _GIB:,.1f} GiB in {cache.folder}; {needed / _GIB:,.1f} GiB of them are in use at a time"
    )
