"""Features: the same whatever the workers, without a trace on the network, and once only thanks to the cache."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor, nn
from torchvision import transforms

from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.datasets.errors import BadImage, DataError, EvaluationError
from leoclr.datasets.images.augmentation import AugmentationSpec, placed
from leoclr.datasets.loading.resident import load_resident
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.scan import build_index
from leoclr.evals.features.cache import FeatureCache, feature_key
from leoclr.evals.features.extract import Features, check_features, extract_features, shown_whole
from leoclr.evals.features.preprocessing import CentreCrop, Preprocessing, WholeImage, standard_view

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WHOLE = Preprocessing(WholeImage(16), MEAN, STD)
COUNT = 22


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def packed(path: Path, images: list[bytes]) -> Index:
    """A shard with these files, labelled 0, 1, 2, 0, ..."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(images):
            for suffix, content in (("png", data), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return build_index([path])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    sizes = [(16, 16), (20, 16), (9, 30)]
    images = [png(noise(*sizes[number % 3], seed=number)) for number in range(COUNT)]
    return packed(tmp_path_factory.mktemp("data") / "a-000000.tar", images)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = build_backbone("resnet18", "cifar", 8)
    network(torch.randn(8, 3, 16, 16))  # running statistics other than 0 and 1
    return network


def test_features_are_those_of_the_normalised_images_in_index_order(index: Index, backbone: Backbone) -> None:
    found = extract_features(backbone, index, WHOLE, batch_size=5, workers=0)
    backbone.eval()
    for number in (0, 7, COUNT - 1):
        sizes = [(16, 16), (20, 16), (9, 30)]
        image = noise(*sizes[number % 3], seed=number).resize((16, 16), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
        normalised = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        expected = backbone(normalised[None])[0].detach().numpy()
        np.testing.assert_allclose(found.features[number], expected, rtol=1e-4, atol=1e-5)
    assert found.features.dtype == np.float32
    assert found.labels.tolist() == [number % 3 for number in range(COUNT)]
    assert found.numbers.tolist() == list(range(COUNT))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(index: Index, backbone: Backbone, workers: int) -> None:
    alone = extract_features(backbone, index, WHOLE, batch_size=4, workers=0)
    found = extract_features(backbone, index, WHOLE, batch_size=4, workers=workers)
    assert np.array_equal(found.features, alone.features)
    assert np.array_equal(found.labels, alone.labels)


def test_the_network_and_the_generators_are_left_as_they_were(index: Index, backbone: Backbone) -> None:
    backbone.train()
    frozen = next(part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d))
    frozen.eval()
    modes = [part.training for part in backbone.modules()]
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    extract_features(backbone, index, WHOLE, batch_size=8, workers=1)
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    backbone(torch.randn(4, 3, 16, 16)).sum().backward()  # parameters still take gradients


def test_the_batch_size_does_not_matter(index: Index, backbone: Backbone) -> None:
    one = extract_features(backbone, index, WHOLE, batch_size=1, workers=0)
    all_at_once = extract_features(backbone, index, WHOLE, batch_size=100, workers=0)
    np.testing.assert_allclose(one.features, all_at_once.features, rtol=1e-4, atol=1e-5)


def test_bf16_features_are_float32_and_near(index: Index, backbone: Backbone) -> None:
    exact = extract_features(backbone, index, WHOLE, workers=0)
    rough = extract_features(backbone, index, WHOLE, workers=0, precision="bf16")
    assert rough.features.dtype == np.float32
    assert not np.array_equal(rough.features, exact.features)
    np.testing.assert_allclose(rough.features, exact.features, atol=0.05 * float(np.abs(exact.features).max()))


def test_progress_counts_every_image(index: Index, backbone: Backbone) -> None:
    done: list[int] = []
    extract_features(backbone, index, WHOLE, batch_size=8, workers=0, advance=done.append)
    assert done == [8, 8, 6]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_named_up_to_a_limit(tmp_path: Path, backbone: Backbone, workers: int) -> None:
    images = [png(noise(16, 16, seed=number)) for number in range(9)]
    whole = extract_features(backbone, packed(tmp_path / "good-0.tar", images), WHOLE, batch_size=4, workers=0)
    images[5] = b"not an image"
    index = packed(tmp_path / "bad-0.tar", images)
    found = extract_features(backbone, index, WHOLE, batch_size=4, workers=workers, max_bad_share=0.2)
    assert found.numbers.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    np.testing.assert_allclose(found.features, whole.features[found.numbers], rtol=1e-4, atol=1e-5)
    assert len(found.skipped) == 1 and "0005" in found.skipped[0]
    with pytest.raises(DataError, match="^1 image cannot be decoded, where 0 may be left out: .*0005.*leoclr shard"):
        extract_features(backbone, index, WHOLE, workers=workers)


def test_resident_images_have_the_same_features(tmp_path: Path, backbone: Backbone) -> None:
    images = [png(noise(16, 16, seed=number)) for number in range(9)]
    images[5] = b"not an image"
    index = packed(tmp_path / "bad-0.tar", images)
    resident = load_resident(index, torch.device("cpu"), 0)
    assert resident is not None and shown_whole(WHOLE.view, resident)
    assert not shown_whole(WholeImage(24), resident) and not shown_whole(CentreCrop(16), resident)
    loaded = extract_features(backbone, index, WHOLE, batch_size=4, workers=0, max_bad_share=0.2)
    (tmp_path / "bad-0.tar").unlink()
    found = extract_features(backbone, index, WHOLE, batch_size=4, max_bad_share=0.2, resident=resident)
    assert np.array_equal(found.features, loaded.features) and np.array_equal(found.numbers, loaded.numbers)
    assert np.array_equal(found.labels, loaded.labels) and len(found.skipped) == 1 and "0005" in found.skipped[0]
    with pytest.raises(DataError, match="0005"):
        extract_features(backbone, index, WHOLE, resident=resident)


def test_a_shard_that_has_gone_is_one_line_from_a_worker_too(tmp_path: Path, backbone: Backbone) -> None:
    index = packed(tmp_path / "gone-0.tar", [png(noise(16, 16, seed=0))])
    (tmp_path / "gone-0.tar").unlink()
    with pytest.raises(DataError) as caught:
        extract_features(backbone, index, WHOLE, workers=1)
    assert "gone-0.tar" in str(caught.value) and "\n" not in str(caught.value)


def test_broken_features_are_refused(index: Index) -> None:
    good = np.random.default_rng(0).normal(size=(COUNT, 3)).astype(np.float32)
    numbers = np.arange(COUNT)
    check_features(Features(good, index.label, numbers), index, "test data")
    bad = good.copy()
    bad[[4, 9], 1] = np.nan, np.inf
    with pytest.raises(EvaluationError, match="test data: the features of 2 of 22 .*'0004'"):
        check_features(Features(bad, index.label, numbers), index, "test data")
    with pytest.raises(EvaluationError, match="collapsed"):
        check_features(Features(np.ones_like(good), index.label, numbers), index, "test data")


class Counting(nn.Module):
    """Means of the channels; counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.mean(dim=(2, 3))


def test_the_cache_returns_the_same_arrays(index: Index, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    key = feature_key("encoder", index.digest, WHOLE, "float32 on cpu")
    assert cache.load(key, index) is None
    stored = extract_features(Counting(), index, WHOLE, workers=0)
    cache.store(key, stored)
    loaded = cache.load(key, index)
    assert loaded is not None
    assert np.array_equal(loaded.features, stored.features) and loaded.features.dtype == np.float32
    assert np.array_equal(loaded.labels, stored.labels) and np.array_equal(loaded.numbers, stored.numbers)
    assert [path.suffix for path in cache.folder.iterdir()] == [".safetensors"]


def test_every_part_of_the_key_counts(index: Index) -> None:
    other_view = Preprocessing(CentreCrop(16), MEAN, STD)
    other_mean = Preprocessing(WHOLE.view, (0.5, 0.4, 0.31), STD)
    keys = {
        feature_key("encoder", "data", WHOLE, "float32 on cpu"),
        feature_key("encodes", "data", WHOLE, "float32 on cpu"),
        feature_key("encoder", "date", WHOLE, "float32 on cpu"),
        feature_key("encoder", "data", other_view, "float32 on cpu"),
        feature_key("encoder", "data", other_mean, "float32 on cpu"),
        feature_key("encoder", "data", WHOLE, "bf16 on cpu"),
    }
    assert len(keys) == 6


def test_a_damaged_cache_file_is_no_features(index: Index, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.store("key", extract_features(Counting(), index, WHOLE, workers=0))
    path = tmp_path / "key.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    assert cache.load("key", index) is None
    path.write_bytes(b"")
    assert cache.load("key", index) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"numbers": np.array([10**6])}, {"skipped": "[]"}),
        ({"numbers": np.array([-1])}, {"skipped": "[]"}),
        ({"numbers": np.array([0.0])}, {"skipped": "[]"}),
        ({"features": np.zeros((2, 4), np.float32)}, {"skipped": "[]"}),
        ({"features": np.zeros((1, 4))}, {"skipped": "[]"}),
        ({}, {"skipped": "{}"}),
        ({}, {"skipped": "[1]"}),
        ({}, {"skipped": "[" * 100_000}),
        ({}, None),
    ],
)
def test_a_cache_file_of_something_else_is_no_features(
    change: dict[str, NDArray[Any]], told: dict[str, str] | None, index: Index, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    tensors = {"features": np.zeros((1, 4), np.float32), "numbers": np.array([0])}
    save_file(tensors, tmp_path / "key.safetensors", {"skipped": "[]"})
    assert cache.load("key", index) is not None
    save_file(tensors | change, tmp_path / "key.safetensors", told)
    assert cache.load("key", index) is None


def test_the_cache_is_bounded_and_drops_the_longest_unused(index: Index, tmp_path: Path) -> None:
    features = extract_features(Counting(), index, WHOLE, workers=0)
    FeatureCache(tmp_path).store("size", features)
    size = (tmp_path / "size.safetensors").stat().st_size
    cache = FeatureCache(tmp_path, limit=3 * size)
    for name in ("a", "b"):
        cache.store(name, features)
    assert cache.load("size", index) is not None  # now "a" is the longest unused
    cache.store("c", features)
    assert {path.stem for path in tmp_path.iterdir()} == {"size", "b", "c"}
    FeatureCache(tmp_path / "tiny", limit=10).store("a", features)
    assert not (tmp_path / "tiny").exists()


def test_a_cache_that_another_process_empties_is_no_error(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / "gone.safetensors"])
    FeatureCache(tmp_path).store("a", extract_features(Counting(), index, WHOLE, workers=0))
    assert (tmp_path / "a.safetensors").is_file()


def test_a_cache_that_cannot_be_written_is_no_error(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    FeatureCache(tmp_path / "file" / "features").store("a", extract_features(Counting(), index, WHOLE, workers=0))
    assert not FeatureCache(tmp_path / "file" / "features").load("a", index)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (100, 900), (1, 5)])
@pytest.mark.parametrize("image_size", [224, 96])
def test_the_centre_crop_equals_torchvisions(size: tuple[int, int], image_size: int) -> None:
    image = noise(*size, seed=1)
    short = {224: 256, 96: 110}[image_size]
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose([transforms.Resize(short, bicubic), transforms.CenterCrop(image_size)])
    assert np.array_equal(CentreCrop(image_size)(image, 0), np.asarray(reference(image)))


def test_small_images_are_seen_as_they_are() -> None:
    image = noise(32, 32, seed=1)
    assert np.array_equal(standard_view(32)(image, 0), np.asarray(image))
    assert standard_view(32)(noise(50, 20, seed=1), 0).shape == (32, 32, 3)
    assert isinstance(standard_view(64), WholeImage) and isinstance(standard_view(65), CentreCrop)


def test_the_protocol_says_what_is_done() -> None:
    assert CentreCrop(224).protocol == "short side to 256 px (bicubic), centre crop 224 px"
    assert "32 x 32" in standard_view(32).protocol


def test_an_image_that_would_be_resized_beyond_all_bounds_is_a_bad_image() -> None:
    assert CentreCrop(224)(Image.new("RGB", (1, 200)), 0).shape == (224, 224, 3)
    with pytest.raises(BadImage, match="1 x 1500 pixels is too thin"):
        CentreCrop(224)(Image.new("RGB", (1, 1500)), 0)  # 256 x 384,000
    with pytest.raises(BadImage, match="1500 x 1 pixels is too thin"):
        placed(1500, 1, AugmentationSpec(224, original="center"))
    assert placed(1500, 1, AugmentationSpec(224, original="pad")) == (0, 111, 224, 1)


def test_features_in_a_folder_that_may_only_be_read_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(np.ones((2, 3), np.float32), np.zeros(2, np.int64), np.arange(2))
    cache = FeatureCache(tmp_path)
    cache.store("key", features)

    def refuse(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", refuse)
    found = cache.load("key", SimpleNamespace(label=np.zeros(2, np.int64)))  # type: ignore[arg-type]
    assert found is not None and np.array_equal(found.features, features.features)
