"""Build the objects of a run from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch

from leoclr.backends.extras import EXTRAS
from leoclr.backends.method import Facts, Method
from leoclr.backends.networks.backbones import Backbone, build_backbone
from leoclr.backends.networks.encoder import Encoder
from leoclr.backends.networks.memory_format import keep_short_rows_contiguous
from leoclr.cli.config.plugin_errors import place_in_plugin
from leoclr.cli.config.plugins import import_method
from leoclr.cli.config.sections import EncoderSettings
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.devices import check_backbone
from leoclr.cli.training.own_memory import leave_read_only_memory
from leoclr.datasets.errors import RunError, SettingsError


def backbone(settings: EncoderSettings, image_size: int | None = None, any_size: bool = False) -> Backbone:
    """The backbone with weights from torch's global generator; SettingsError when there is no such model.

    Args:
        image_size, any_size: As `build_backbone` takes them.
    """
    try:
        network = build_backbone(
            settings.backbone,
            settings.stem,
            settings.width,
            image_size=image_size,
            any_size=any_size,
            drop_path=settings.drop_path,
        )
    except ValueError as error:
        raise SettingsError(f"encoder: {error}") from None
    if settings.freeze_patches:
        patches = getattr(network, "patch_embed", None)
        if patches is None:
            raise SettingsError(f"encoder.freeze_patches: {settings.backbone} has no patch embedding; only ViTs have")
        patches.requires_grad_(False)
    return network


def method(settings: Settings, device: torch.device, images: int, ranks: int = 1) -> Method:
    """The method with weights from `train.seed`, on the device, the same on every rank.

    Args:
        images: Images in the data set.
        ranks: Processes that train together.

    Raises:
        RunError: The backbone cannot be trained on such images on this device.
        SettingsError: There is no such backbone or method.
    """
    encoder, train = settings.encoder, settings.train
    shapes: dict[str, torch.Size] = {}

    def new_backbone() -> Backbone:
        network = _checked_backbone(settings, device)
        shapes.update(_shapes(network))
        return network

    facts = Facts(
        new_backbone=new_backbone,
        projector=(encoder.projector_layers, encoder.projector_hidden, encoder.projector_dim),
        pairs=settings.view_policy.pairs,
        sizes=settings.view_policy.sides(settings.data.image_size),
        batch_size=settings.data.batch_size,
        images=images,
        image_size=settings.data.image_size,
        ranks=ranks,
        seed=train.seed,
        device_type=device.type,
        policy={} if settings.policy is None else settings.policy.model_dump(),
    )
    made = _made(settings, facts)
    _refuse_backbones(settings.backend, made, shapes)
    leave_read_only_memory(made)
    memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
    made.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    if train.channels_last and train.precision == "bf16" and device.type == "cpu":
        for network in made.backbones().values():
            keep_short_rows_contiguous(network, settings.data.image_size)
    if train.compile:
        for part in made.modules():
            if isinstance(part, Encoder):
                part.compile()  # and not torch.compile, whose wrapper would rename the weights
    return made


def _checked_backbone(settings: Settings, device: torch.device) -> Backbone:
    """The backbone, which takes views of every size of the policy on the device; RunError where it does not."""
    whole, policy = settings.data.image_size, settings.view_policy
    of_size = {side: name for name, side in policy.sides(whole).items()}
    network = backbone(settings.encoder, whole, any_size=of_size.keys() != {whole})
    for size, name in sorted(of_size.items(), reverse=True):
        try:
            check_backbone(network, size, settings.train.precision, device)
        except RunError as error:
            share = policy.views[name].size
            where = f"; it is the size of {name} in {policy.name} views, {share:.3g} of data.image_size {whole}"
            raise RunError(f"{error}{where if size != whole else ''}") from None
    return network


def _made(settings: Settings, facts: Facts) -> Method:
    """The method with weights from `train.seed`; SettingsError where its class is none or refuses its settings."""
    kind = import_method(settings.backend, settings.views)
    if not issubclass(kind, Method):
        raise SettingsError(
            f"backend {settings.backend}: {kind.__name__} must be a subclass of leoclr.backends.method.Method"
        )
    if not _takes(kind, settings.method, facts):
        raise SettingsError(f"backend {settings.backend}: {kind.__name__}.__init__ must take (settings, facts)")
    torch.manual_seed(settings.train.seed)
    made: Method
    try:
        made = kind(settings.method, facts)
    except ValueError as error:
        place = place_in_plugin(error)
        raise SettingsError(f"{error} ({place})" if place else str(error)) from None
    for name in EXTRAS:  # the loader asks the class
        if getattr(made, f"takes_{name}") != getattr(kind, f"takes_{name}"):
            raise SettingsError(f"backend {settings.backend}: takes_{name} is set in the class, not in __init__")
    return made


def _takes(kind: type[Method], *arguments: Any) -> bool:
    try:
        signature(kind).bind(*arguments)
    except TypeError:
        return False
    return True


def _refuse_backbones(name: str, method: Method, shapes: Mapping[str, torch.Size]) -> None:
    """Raise SettingsError where nothing would be scored or exported, hours later: what a method calls its backbones is
    not in its state under these names, or has other weights than those of `facts.new_backbone()`, whose shapes are
    given."""
    found = method.backbones()
    if not found:
        raise SettingsError(f"backend {name}: backbones() must name a backbone, which is scored and exported")
    modules = dict(method.named_modules(remove_duplicate=False))
    for place, network in found.items():
        if modules.get(place) is not network:
            right = next((other for other, module in modules.items() if module is network), None)
            hint = f"; it is {right}" if right else ""
            raise SettingsError(f"backend {name}: backbones() says {place!r}, where the method does not have it{hint}")
        if _shapes(network) != shapes:
            raise SettingsError(
                f"backend {name}: {place} has other weights than what facts.new_backbone() makes, so that no command "
                "could load it"
            )


def _shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}
