"""Export to ONNX."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from leoclr.cli.exporting.feature_map import WithFeatureMap
from leoclr.cli.exporting.onnx_preprocessing import IMAGES, PIXELS, preprocessing_graph
from leoclr.cli.exporting.target import Network, Target, Transform
from leoclr.datasets.errors import SettingsError

_OUTPUTS = ["features", "feature_map"]


class Onnx(Target):
    """A graph for ONNX Runtime, for batches of any size, from images or from raw pixels to features and feature map."""

    def check(self) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise SettingsError(f"--format onnx needs {error.name}: pip install 'leoclr-cli[onnx]'") from None

    def write(self, path: Path) -> None:
        import onnx
        from onnx import compose, helper

        encoder = self.encoder
        program = torch.onnx.export(
            self._both(),
            (torch.zeros(2, 3, encoder.image_size, encoder.image_size),),
            dynamo=True,
            input_names=[IMAGES],
            output_names=_OUTPUTS,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        model: Any = program.model_proto
        if self.options.preprocessing:
            (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
            before = preprocessing_graph(encoder.resize, encoder.mean, encoder.std, model.ir_version, opset)
            model = compose.merge_models(before, model, io_map=[(IMAGES, IMAGES)])
        own = {"image_size": encoder.image_size, "mean": encoder.mean, "std": encoder.std, "digest": encoder.digest}
        helper.set_model_props(model, {"leoclr": json.dumps(own)})
        onnx.save(model, str(path))

    def reference(self) -> Network:
        both = self._both()
        return lambda images: _together(*both(images))

    def open(self, path: Path) -> Network:
        session = self._session(path, [IMAGES], _OUTPUTS)
        return lambda images: _together(*map(torch.from_numpy, session.run(_OUTPUTS, {IMAGES: images.numpy()})))

    def preprocessing(self, path: Path) -> Transform | None:
        if not self.options.preprocessing:
            return None
        session = self._session(path, [PIXELS], [IMAGES])

        def transform(picture: Image.Image) -> Tensor:
            return torch.from_numpy(session.run(None, {PIXELS: np.asarray(picture)[None]})[0][0])

        return transform

    def usage(self, path: Path) -> tuple[str, ...]:
        size = self.encoder.image_size
        if self.options.preprocessing:
            name, example = PIXELS, "numpy.zeros((1, 480, 640, 3), numpy.uint8)  # your images, RGB, of one size"
        else:
            name, example = IMAGES, f"numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # normalised as said above"
        return (
            "import numpy, onnxruntime",
            f"{name} = {example}",
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            f'features, feature_map = session.run(["features", "feature_map"], {{"{name}": {name}}})',
        )

    def _both(self) -> WithFeatureMap:
        backbone = copy.deepcopy(self.encoder.backbone).cpu().eval()
        return WithFeatureMap(backbone, self.encoder.image_size).eval()

    def _session(self, path: Path, inputs: list[str], outputs: list[str]) -> Any:
        """Of the part of the file between some of its values."""
        import onnx
        import onnxruntime
        from onnx import utils

        part = utils.Extractor(onnx.load(str(path))).extract_model(inputs, outputs)
        return onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])


def _together(features: Tensor, feature_map: Tensor) -> Tensor:
    """One row for each image."""
    return torch.cat([features, feature_map.flatten(1)], dim=1)
