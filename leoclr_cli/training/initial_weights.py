"""Weights that a run starts from in place of random ones: `encoder.weights`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leoclr.backends.method import Method
from leoclr.cli.config.sections import EncoderSettings
from leoclr.cli.run.encoders import load_encoder
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.shards.locate import absolute


def start_from_weights(method: Method, settings: EncoderSettings) -> dict[str, Any] | None:
    """Load `encoder.weights` into each backbone of the method; heads and queue stay random.

    Returns:
        Where they come from and their SHA-256, for run.json; None where the setting is empty.

    Raises:
        CheckpointError: They are missing or damaged, or pickle more than tensors.
        SettingsError: They are of another architecture.
    """
    if not settings.weights:
        return None
    loaded = load_encoder(Path(settings.weights), settings.backbone)
    found, wanted = (f"{encoder.stem} stem, width {encoder.width}" for encoder in (loaded, settings))
    if found != wanted:
        raise SettingsError(f"encoder.weights {settings.weights} has {found}; the settings say {wanted}")
    for backbone in method.backbones().values():
        backbone.load_state_dict(loaded.backbone.state_dict())
    (source,) = absolute([settings.weights])
    return {"source": source, "digest": loaded.digest}
