"""Initial backbone weights from `encoder.weights`."""

from __future__ import annotations

import copy
from typing import Any

import torch

from leoclr.backends.method import Method
from leoclr.backends.networks.backbones import Backbone
from leoclr.cli.config.sections import AugmentationSettings
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.encoders import LoadedEncoder, load_encoder
from leoclr.cli.run.model_names import is_named
from leoclr.cli.terminal import say, warn
from leoclr.datasets.errors import CheckpointError, SettingsError
from leoclr.datasets.shards.locate import absolute
from leoclr.datasets.wording import first_of


def start_from_weights(method: Method, settings: Settings, speaks: bool = True) -> dict[str, Any] | None:
    """Load `encoder.weights` into each backbone of the method; heads and queue stay random.

    The position embedding of a ViT for images of another size is resized by timm.

    Args:
        speaks: Whether this process is the one that tells of them.

    Returns:
        Where they come from, their SHA-256, how many tensors were loaded and which names were left out, for run.json;
        None where the setting is empty.

    Raises:
        CheckpointError: They are missing or damaged, pickle more than tensors, or are not finite.
        SettingsError: They are of another architecture.
    """
    weights = settings.encoder.weights
    if not weights:
        return None
    loaded = load_encoder(weights, settings.encoder.backbone)
    found, wanted = (f"{encoder.stem} stem, width {encoder.width}" for encoder in (loaded, settings.encoder))
    if found != wanted:
        changes = " ".join(
            f"--set encoder.{name}={getattr(loaded, name)}"
            for name in ("stem", "width")
            if getattr(loaded, name) != getattr(settings.encoder, name)
        )
        raise SettingsError(f"encoder.weights {weights} has {found}; the settings say {wanted}; take {changes}")
    tensors = loaded.backbone.state_dict()
    if broken := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(f"{loaded.source}: {first_of(broken, 4)}: NaN or infinite; its training has diverged")
    for backbone in method.backbones().values():
        _load(loaded, backbone, settings.data.image_size)
    source = weights if is_named(weights) else absolute([weights])[0]
    if speaks:
        say(f"the backbone starts from {weights}: {len(tensors)} tensors loaded, all that it has")
        _warn_of_other_normalisation(loaded, settings.augmentation)
    return {"source": source, "digest": loaded.digest, "tensors": len(tensors), "left_out": list(loaded.left_out)}


def _warn_of_other_normalisation(loaded: LoadedEncoder, augmentation: AugmentationSettings) -> None:
    of_weights, here = (loaded.mean, loaded.std), (augmentation.mean, augmentation.std)
    if loaded.states_normalisation and of_weights != here:
        mean, std = (",".join(map(str, values)) for values in of_weights)
        warn(
            "these weights know images of another normalisation; take --set augmentation.mean="
            f"{mean} --set augmentation.std={std}"
        )


def _load(loaded: LoadedEncoder, backbone: Backbone, image_size: int) -> None:
    source: Any = loaded.backbone
    tensors = source.state_dict()
    if "pos_embed" in tensors and loaded.image_size != image_size and hasattr(source, "set_input_size"):
        source = copy.deepcopy(source)
        source.set_input_size(img_size=image_size)
        tensors = source.state_dict()
    backbone.load_state_dict(tensors)
