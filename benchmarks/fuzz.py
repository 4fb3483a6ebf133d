"""Fuzz what reads untrusted files, guided by coverage: each input is read, or refused in one line.

Run: pip install atheris
     python benchmarks/fuzz.py tar --minutes 60 --corpus fuzz

The targets are in `fuzzing/targets.py`. Any other exception, a hang (--timeout seconds) or memory beyond --memory MiB
ends the run, and the input lies in the corpus folder. The corpus is kept: another run goes on from it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

INSTRUMENTED = ["leoclr", "PIL", "tomllib", "json", "yaml", "zipfile"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", help="tar, index, state, images, labels or settings")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--corpus", type=Path, default=Path("fuzz"), help="a folder with a folder for each target")
    parser.add_argument("--timeout", type=int, default=20, help="seconds for one input")
    parser.add_argument("--memory", type=int, default=2048, help="MiB of the process")
    parser.add_argument("--input", type=Path, help="try this one file instead")
    options = parser.parse_args()
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        raise SystemExit("atheris is not installed: pip install atheris") from None
    with atheris.instrument_imports(include=INSTRUMENTED):
        sys.path.insert(0, str(Path(__file__).parents[1]))
        targets = importlib.import_module("benchmarks.fuzzing.targets")
    if options.target not in targets.TARGETS:
        raise SystemExit(f"{options.target!r}: not one of {', '.join(targets.TARGETS)}")
    target = targets.TARGETS[options.target]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.input is not None:
            target.attempt(options.input.read_bytes(), folder)
            return
        corpus = options.corpus / options.target
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (corpus / f"seed-{number:03d}").write_bytes(seed)
        arguments = [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={options.minutes * 60:.0f}",
            f"-timeout={options.timeout}",
            f"-rss_limit_mb={options.memory}",
            f"-max_len={target.longest}",
            f"-artifact_prefix={options.corpus / options.target}-",
            "-print_final_stats=1",
        ]

        def mutate(data: bytes, longest: int, seed: int) -> bytes:
            changed: bytes | None = target.mutated(data, seed) if seed % 2 else None
            return changed if changed and len(changed) <= longest else bytes(atheris.Mutate(data, longest))

        atheris.Setup(arguments, lambda data: target.attempt(data, folder), custom_mutator=mutate)
        sys.stdout.flush()
        atheris.Fuzz()  # ends the process: os._exit within libFuzzer


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
