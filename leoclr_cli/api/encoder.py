"""Load an encoder as a module, and compute features of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from leoclr.backends.networks.evaluation_mode import evaluation_mode
from leoclr.cli.image_folders import as_shards
from leoclr.cli.run.encoders import LoadedEncoder
from leoclr.datasets.errors import BadImage, DataError
from leoclr.datasets.images.decode import decode_image, eight_bit_rgb
from leoclr.datasets.images.file_names import is_image
from leoclr.datasets.images.normalise import normalise
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.features.extract import extract_features
from leoclr.evals.features.preprocessing import Preprocessing


class Encoder(nn.Module):
    """From preprocessed images, `(n, 3, image_size, image_size)`, to features, `(n, feature_dim)`.

    Attributes:
        backbone: torchvision's or timm's own network, without classifier.
        name: What `--backbone` calls it.
        feature_dim: Features of an image.
        image_size: Side of the images in pixels.
        mean, std: Per channel, for pixels in 0..1.
        digest: SHA-256 of the weights, in hexadecimal.
        source: Where it comes from, for a person to read.
    """

    def __init__(self, loaded: LoadedEncoder) -> None:
        super().__init__()
        self.backbone = loaded.backbone
        self.name, self.source, self.digest = loaded.name, loaded.source, loaded.digest
        self.feature_dim, self.image_size = loaded.backbone.feature_dim, loaded.image_size
        self.mean, self.std = loaded.mean, loaded.std
        self._view = loaded.view
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features, before any projector."""
        features: Tensor = self.backbone(images)
        return features

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image of any size as the encoder is tested with: resized, cropped and normalised, `(3, size, size)`.

        Raises:
            BadImage: It has more than 8 bits a sample, no pixels, or is too thin to be resized.
        """
        if 0 in image.size:
            raise BadImage(f"the image has {image.width} x {image.height} pixels")
        pixels = torch.from_numpy(self._view(eight_bit_rgb(image), 0).copy()).permute(2, 0, 1)
        return normalise(pixels[None], self.mean, self.std)[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device


def embed_images(encoder: Encoder, images: Any, batch_size: int, workers: int) -> NDArray[np.float32]:
    """See `leoclr.api.embed`."""
    if batch_size < 1:
        raise DataError(f"batch_size: at least 1, not {batch_size}")
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    images = list(images)  # which may come once only
    if wrong := [image for image in images if not isinstance(image, str | os.PathLike | Image.Image)]:
        raise DataError(
            f"images: Pillow images, image files or shards, not {type(wrong[0]).__name__}; "
            "of an array, PIL.Image.fromarray makes an image"
        )
    places = [os.fspath(image) for image in images if isinstance(image, str | os.PathLike)]
    if not places:
        return _of_images(encoder, images, batch_size)
    if len(places) != len(images):
        raise DataError("images: Pillow images and paths cannot be mixed")
    if all(is_image(place) for place in places):
        return _of_files(encoder, places, batch_size)
    preprocessing = Preprocessing(encoder._view, encoder.mean, encoder.std)
    found = extract_features(
        encoder,
        open_data(as_shards(places, announce=False)),
        preprocessing,
        batch_size=batch_size,
        device=encoder.device,
        workers=workers,
        max_bad_share=0.0,  # a row for every image
    )
    return found.features


def _of_files(encoder: Encoder, places: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(places), batch_size):
        images = [_decoded(Path(place)) for place in places[start : start + batch_size]]
        parts.append(_of_images(encoder, images, batch_size))
    return np.concatenate(parts)


def _decoded(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from None


def _of_images(encoder: Encoder, images: Sequence[Image.Image], batch_size: int) -> NDArray[np.float32]:
    features = np.empty((len(images), encoder.feature_dim), np.float32)
    with evaluation_mode(encoder), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.stack([encoder.preprocess(image) for image in images[start : start + batch_size]])
            features[start : start + len(batch)] = encoder(batch.to(encoder.device)).float().cpu().numpy()
    return features
