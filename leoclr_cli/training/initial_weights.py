"""Weights that a run starts from in place of random ones: `encoder.weights`."""

from __future__ import annotations

from typing import Any

from leoclr.backends.method import Method
from leoclr.cli.config.sections import EncoderSettings
from leoclr.cli.run.encoders import load_encoder
from leoclr.cli.run.model_names import is_named
from leoclr.cli.terminal import say
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.shards.locate import absolute


def start_from_weights(method: Method, settings: EncoderSettings) -> dict[str, Any] | None:
    """Load `encoder.weights` into each backbone of the method; heads and queue stay random.

    Returns:
        Where they come from, their SHA-256, how many tensors were loaded and which names were left out, for run.json;
        None where the setting is empty.

    Raises:
        CheckpointError: They are missing or damaged, or pickle more than tensors.
        SettingsError: They are of another architecture.
    """
    if not settings.weights:
        return None
    loaded = load_encoder(settings.weights, settings.backbone)
    found, wanted = (f"{encoder.stem} stem, width {encoder.width}" for encoder in (loaded, settings))
    if found != wanted:
        raise SettingsError(f"encoder.weights {settings.weights} has {found}; the settings say {wanted}")
    for backbone in method.backbones().values():
        backbone.load_state_dict(loaded.backbone.state_dict())
    source = settings.weights if is_named(settings.weights) else absolute([settings.weights])[0]
    tensors = len(loaded.backbone.state_dict())
    say(f"the backbone starts from {settings.weights}: {tensors} tensors loaded, all that it has")
    return {"source": source, "digest": loaded.digest, "tensors": tensors, "left_out": list(loaded.left_out)}
