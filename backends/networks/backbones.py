"""Backbones: image classifiers without their final layer.

Any torchvision classifier by its name, any timm model as `timm:NAME` (extra `timm`). ResNets may have the CIFAR stem,
and ResNet-18 and -34 another width. A ResNet's state dict has torchvision's names, so the weights load anywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from leoclr.backends.networks.evaluation_mode import evaluation_mode
from leoclr.backends.settings import STANDARD_WIDTH

_USUAL_SIZE = 224
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}


class Backbone(nn.Module):
    """What `build_backbone` returns: a network from images, `(n, 3, h, w)`, to features, `(n, feature_dim)`.

    A type, not a wrapper: the network is the library's own module, so that its state dict has the library's names.
    """

    feature_dim: int

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features of normalised images."""
        raise NotImplementedError


def build_backbone(
    name: str,
    stem: str = "imagenet",
    width: int = STANDARD_WIDTH,
    *,
    image_size: int | None = None,
    any_size: bool = False,
    drop_path: float = 0.0,
) -> Backbone:
    """A backbone with random weights, from torch's global generator.

    Args:
        name: `resnet50`, `convnext_tiny`, ... or `timm:NAME`.
        stem: "imagenet" (7x7, stride 2, max-pool) or, for ResNets, "cifar" (3x3, stride 1): 32 px images keep their
            resolution.
        width: Channels of the first stage of a ResNet-18 or -34; the other stages have 2, 4 and 8 times as many.
        image_size: Side of the images in pixels, for timm's models that are built for one size (ViTs).
        any_size: Whether such a model must take images of other sizes, too, at the cost of resizing its position
            embedding in each pass.
        drop_path: Largest probability that a residual branch is left out in training, for timm's models.

    Raises:
        ValueError: There is no such model, or it has no such stem, width, size or residual branches to drop.
    """
    if name.startswith("timm:"):
        _only_standard(name, stem, width)
        model = name.removeprefix("timm:")
        arguments = timm_arguments(model, image_size)
        arguments |= {"dynamic_img_size": True} if any_size and arguments else {}
        return _with_dimension(*_timm(model, arguments | ({"drop_path_rate": drop_path} if drop_path else {})))
    if drop_path:
        raise ValueError(f"drop_path applies to timm's models; {name} is torchvision's")
    available = models.list_models(module=models)
    if name not in available:
        raise ValueError(f"torchvision has no classifier {name!r}{_meant(name, available)}{_in_timm(name)}")
    with_auxiliary = name in ("googlenet", "inception_v3")  # classifiers on the way, which have no use here
    network = models.get_model(name, weights=None, **_WITHOUT_AUXILIARY if with_auxiliary else {})
    if isinstance(network, ResNet):
        _reshape_resnet(network, name, stem, width)
        dimension, network.fc = network.fc.in_features, nn.Identity()
        return _with_dimension(network, dimension)
    _only_standard(name, stem, width)
    return _with_dimension(network, _drop_classifier(network, name))


class Seen(NamedTuple):
    """A convolution in a backbone, and how many pixels wide its input and its output are."""

    name: str
    layer: nn.Conv2d
    input_width: int
    output_width: int


@torch.no_grad()
def convolutions(backbone: Backbone, size: int) -> list[Seen]:
    """The convolutions that images of `size` pixels go through, in order.

    A forward pass of one image in evaluation mode finds them; the backbone stays as it is.

    Raises:
        ValueError: The backbone does not take such images, or its features are not what `feature_dim` says.
    """
    found: list[Seen] = []

    def look_at(name: str) -> Callable[[nn.Conv2d, tuple[Tensor], Tensor], None]:
        def look(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
            found.append(Seen(name, layer, inputs[0].shape[-1], output.shape[-1]))

        return look

    layers = [(name, layer) for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(look_at(name)) for name, layer in layers]
    weight = next(backbone.parameters())
    try:
        with evaluation_mode(backbone):
            shape = tuple(backbone(weight.new_zeros(1, 3, size, size)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"it does not take images of {size} px ({' '.join(str(error).split())[:200]})") from None
    finally:
        for hook in hooks:
            hook.remove()
    if shape != (1, backbone.feature_dim):
        raise ValueError(f"its features for an image have shape {shape} instead of (1, {backbone.feature_dim})")
    return found


def narrow_convolution(backbone: Backbone, size: int) -> str | None:
    """Name of the first convolution whose input is narrower than its stride, when images are `size` pixels wide.

    Raises:
        ValueError: As `convolutions`.
    """
    narrow = (seen.name for seen in convolutions(backbone, size) if seen.input_width < seen.layer.stride[1])
    return next(narrow, None)


def _with_dimension(network: nn.Module, dimension: int) -> Backbone:
    backbone = cast(Backbone, network)
    backbone.feature_dim = dimension
    return backbone


def _reshape_resnet(network: ResNet, name: str, stem: str, width: int) -> None:
    if width != STANDARD_WIDTH:
        if not isinstance(network.layer1[0], BasicBlock):
            raise ValueError(f"only resnet18 and resnet34 come in other widths, not {name}")
        depths = [len(layer) for layer in (network.layer1, network.layer2, network.layer3, network.layer4)]
        network.inplanes = width
        network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        network.bn1 = nn.BatchNorm2d(width)
        for stage, depth in enumerate(depths):
            layer = network._make_layer(BasicBlock, width * 2**stage, depth, stride=1 if stage == 0 else 2)
            setattr(network, f"layer{stage + 1}", layer)
        network.fc = nn.Linear(8 * width, 1)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    for module in network.modules():  # the replaced convolutions get torchvision's initialisation too
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _drop_classifier(network: nn.Module, name: str) -> int:
    """Replace the last linear layer, which torchvision's classifiers end in, by nothing; return its input's size."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{name} does not end in a linear classifier; its features are unknown")
    path, last = linear[-1]
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return last.in_features


def timm_arguments(name: str, image_size: int | None) -> dict[str, Any]:
    """What `timm.create_model` must be told of the size of images: nothing for a network that takes any.

    Raises:
        ValueError: timm is not installed or has no such model.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(f"timm:{name} needs timm: pip install 'leoclr-cli[timm]'") from None
    if name not in timm.list_models():
        raise ValueError(f"timm has no model {name!r}{_meant(name, timm.list_models(), 'timm:')}")
    told: Any = timm.get_pretrained_cfg(name)
    fixed = image_size is not None and told is not None and told.fixed_input_size
    return {"img_size": image_size} if fixed else {}


def refused_size(backbone: Backbone, name: str, own: int, size: int) -> str | None:
    """Why a backbone does not take images of `size` pixels, in words to follow its name; None where it does.

    Args:
        own: The size that it was built for or trained on.
    """
    timm = name.startswith("timm:") and timm_arguments(name.removeprefix("timm:"), size)
    if timm or getattr(backbone, "image_size", size) != size:  # torchvision's ViTs have the attribute
        return f"takes images of {own} px alone"
    try:
        convolutions(backbone, size)
    except ValueError as error:
        return f"is trained on images of {own} px; {error}"
    return None


def usual_size(name: str) -> int:
    """Side in pixels of the images that a network is made for, where nothing else says it: 224, or that of one of
    timm's networks that are built for one size."""
    if not name.startswith("timm:"):
        return _USUAL_SIZE
    try:
        import timm
    except ImportError:  # whoever builds the network says so
        return _USUAL_SIZE
    told: Any = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    return int(told.input_size[-1]) if told is not None and told.fixed_input_size else _USUAL_SIZE


def _timm(name: str, arguments: dict[str, Any]) -> tuple[nn.Module, int]:
    import timm

    try:
        network: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        asked = ", ".join(f"{key} {value}" for key, value in arguments.items()) or "its defaults"
        raise ValueError(f"timm's {name} cannot be built with {asked}: {' '.join(str(error).split())[:200]}") from None
    return network, int(getattr(network, "head_hidden_size", None) or network.num_features)


def _in_timm(name: str) -> str:
    """Where torchvision has no such classifier but timm has, if it is installed."""
    try:
        import timm
    except ImportError:
        return ""
    return f"; timm has it: timm:{name}" if name in timm.list_models() else ""


def _meant(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The models that a misspelt name was probably meant to be, to be added to a message."""
    close = difflib.get_close_matches(name, known, n=3) or [other for other in known if other.startswith(name[:4])][:6]
    return f"; did you mean {' or '.join(prefix + other for other in close)}?" if close else ""


def _only_standard(name: str, stem: str, width: int) -> None:
    if stem != "imagenet" or width != STANDARD_WIDTH:
        raise ValueError(f"stem and width apply to ResNets; {name} has its own")
