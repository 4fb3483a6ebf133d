"""Export to ONNX."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from leoclr.cli.exporting.target import Network, Target
from leoclr.datasets.errors import SettingsError


class Onnx(Target):
    """A graph for ONNX Runtime, for batches of any size."""

    def check(self) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise SettingsError(f"--format onnx needs {error.name}: pip install 'leoclr-cli[onnx]'") from None

    def write(self, path: Path) -> None:
        encoder = self.encoder
        program = torch.onnx.export(
            copy.deepcopy(encoder.backbone).cpu().eval(),
            (torch.zeros(2, 3, encoder.image_size, encoder.image_size),),
            dynamo=True,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        preprocessing = {"image_size": encoder.image_size, "mean": encoder.mean, "std": encoder.std}
        program.model.metadata_props["leoclr"] = json.dumps({**preprocessing, "digest": encoder.digest})
        program.save(str(path))

    def open(self, path: Path) -> Network:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    def usage(self, path: Path) -> tuple[str, ...]:
        size = self.encoder.image_size
        return (
            "import numpy, onnxruntime",
            f"images = numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # yours, normalised as said above",
            f"session = onnxruntime.InferenceSession({str(path)!r})",
            'features = session.run(None, {"images": images})[0]',
        )
