"""An ONNX graph from raw pixels to the normalised images that an encoder takes.

The same test view as `leoclr.evals.features.preprocessing`: ONNX's cubic filter with antialiasing and a coefficient of
-0.5 is Pillow's bicubic one, and ONNX Runtime computes it on bytes, in integers, as Pillow does. It resizes rows before
columns, Pillow 13 the cheaper direction first, which differs by one level in a pixel of thousands. Only where one side
grows and the other shrinks, which a squash to a small square may do, is it several levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leoclr.evals.features.preprocessing import ResizeRule

PIXELS, IMAGES = "pixels", "images"

_SHORT_SIDE = """
  shorter = ReduceMin (sides)
  scaled = Mul (sides, size)
  resized_sides = Div (scaled, shorter)
"""
_SQUARE = """
  resized_sides = Concat <axis = 0> (size, size)
"""
_GRAPH = """
<ir_version: {ir}, opset_import: ["": {opset}]>
preprocessing (uint8[batch, height, width, 3] pixels) => (float[batch, 3, {crop}, {crop}] images)
<int64[1] size = {{{size}}}, int64[1] crop = {{{crop}}}, int64[2] axes = {{2, 3}}, float half = {{0.5}},
 float[3, 1, 1] scale = {{{scale}}}, float[3, 1, 1] shift = {{{shift}}}>
{{
  planes = Transpose <perm = [0, 3, 1, 2]> (pixels)
  batch_and_channels = Shape <end = 2> (planes)
  sides = Shape <start = 2> (planes)
{resized_sides}
  shape = Concat <axis = 0> (batch_and_channels, resized_sides)
  resized = Resize <mode = "cubic", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1> (planes, , , shape)
  excess = Sub (resized_sides, crop)
  excess_float = Cast <to = 1> (excess)
  middle = Mul (excess_float, half)
  even_middle = Round (middle)
  start = Cast <to = 7> (even_middle)
  stop = Add (start, crop)
  cropped = Slice (resized, start, stop, axes)
  floats = Cast <to = 1> (cropped)
  scaled_floats = Mul (floats, scale)
  images = Add (scaled_floats, shift)
}}
"""


def preprocessing_graph(rule: ResizeRule, mean: Sequence[float], std: Sequence[float], ir: int, opset: int) -> Any:
    """A model from `pixels`, uint8, `(n, height, width, 3)` in RGB, of any size, to `images`, normalised, `(n, 3, crop,
    crop)`; its versions are those of the model that it is put before."""
    from onnx import parser

    return parser.parse_model(
        _GRAPH.format(
            ir=ir,
            opset=opset,
            size=rule.size,
            crop=rule.crop,
            resized_sides=_SHORT_SIDE if rule.mode == "short side" else _SQUARE,
            scale=_numbers([1 / (255 * deviation) for deviation in std]),
            shift=_numbers([-m / deviation for m, deviation in zip(mean, std, strict=True)]),
        )
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.9g}" for value in values)
