"""Compile all Triton kernels for a GPU that need not be there: `build_kernels.py ARCHITECTURE`, such as 80 or 90.

Prints each kernel's name, how many of its accesses to memory are 16 bytes wide, and its size in bytes.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leoclr.backends.networks import batchnorm_triton
from leoclr.datasets.images import jitter_triton

POINTERS = {
    "batches": "*i64", "bias": "*fp32", "bias_gradient": "*fp32", "gradients": "*bf16", "images": "*bf16",
    "output": "*bf16", "parameters": "*fp32", "partial": "*fp32", "running_mean": "*fp32", "running_var": "*fp32",
    "saved": "*fp32", "sums": "*i32", "weight": "*fp32", "weight_gradient": "*fp32",
}  # fmt: skip
NUMBERS = {"momentum": "fp32", "unbiased": "fp32", "eps": "fp32"}
TILES = {"ROWS": 64, "CHANNELS": 32, "CHANNELS_LAST": True, "AFFINE": True, "PIXELS": 1024}
OTHER_TILES = {"ROWS": 2048, "CHANNELS": 1, "CHANNELS_LAST": False, "AFFINE": False}


def build(kernel: Any, architecture: int, tiles: dict[str, Any] = TILES, **pointers: str) -> None:
    signature = {
        name: "constexpr" if name in TILES else (POINTERS | NUMBERS | pointers).get(name, "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in ("row_count", "channel_count", "pixels", "chunk_rows")
    }
    constants = {name: value for name, value in tiles.items() if name in signature}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})
    name = kernel.__name__ if tiles is TILES else f"{kernel.__name__}:contiguous"
    print(name, len(re.findall(r"(?:ld|st)\.global\S*\.v4", built.asm["ptx"])), len(built.asm["cubin"]))


def main() -> None:
    architecture = int(sys.argv[1])
    for name in ("_statistics", "_normalise", "_gradient_sums", "_gradient"):
        build(getattr(batchnorm_triton, name), architecture)
        floats = {each: "*fp32" for each in ("images", "output", "gradients")}
        build(getattr(batchnorm_triton, name), architecture, OTHER_TILES, **floats)
    for name in ("_mean_greys", "_jitter"):
        build(getattr(jitter_triton, name), architecture, images="*u8", output="*fp32")


if __name__ == "__main__":
    main()
