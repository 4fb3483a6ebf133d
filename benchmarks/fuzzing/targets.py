"""What `fuzz.py` tries: for each kind of untrusted file, code that reads it, and valid files to begin from.

Checksums (of tar headers, PNG chunks, indexes, checkpoints) are put right before an input is tried, so that a change
reaches what they guard.
"""

from __future__ import annotations

from benchmarks.fuzzing.images import IMAGES
from benchmarks.fuzzing.runs import SETTINGS, STATE_FILES
from benchmarks.fuzzing.shards import INDEX, LABELS, TAR

TARGETS = {
    "tar": TAR,
    "index": INDEX,
    "state": STATE_FILES,
    "images": IMAGES,
    "labels": LABELS,
    "settings": SETTINGS,
}
