"""Checks of a method's interface: `leoclr method check`.

Every check runs on any installed method, at a size of seconds (`small_settings`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from leoclr.backends.extras import examples
from leoclr.backends.method import Method, Progress
from leoclr.cli.config.fields import replaced
from leoclr.cli.config.plugins import VIEWS, plugins
from leoclr.cli.config.settings import Settings
from leoclr.cli.methods.gpu_checks import one_device, replay
from leoclr.cli.methods.outcome import Failure, Note, Result, refuse_different, result_of
from leoclr.cli.methods.processes import refuse_failed, run_processes
from leoclr.cli.methods.ranks import two_steps
from leoclr.cli.methods.small_settings import BATCH, small_settings
from leoclr.cli.methods.step_checks import exact_loss, state_moves
from leoclr.cli.preflight.checks import facts_of, policy_problems, problems
from leoclr.cli.run.checkpoint import load_checkpoint, save_checkpoint
from leoclr.cli.run.encoders import load_encoder, read_encoder, write_encoder
from leoclr.cli.training import build
from leoclr.cli.training.outputs import refuse_output
from leoclr.cli.training.trainer import train
from leoclr.datasets.errors import RunError, SettingsError, first_fault
from leoclr.datasets.photo_like import photo_like
from leoclr.datasets.wording import first_of

_CPU = torch.device("cpu")
_STEPS_PER_EPOCH, _STOP = 3, 4  # stopped within an epoch that another follows, which may begin with state
_COMMAND = ["leoclr method check"]
_TOLERANCE = 1e-7  # of numbers in float64 that two processes add in another order
_FLOAT32 = 1e-5  # what float32 would add to that
_EXPORT_TOLERANCE = 1e-5
_OF_ONE_PROCESS = ": gather what after_update makes it of (backends/distributed.py), or name it in per_rank"
_Check = Callable[[Settings, Path], str]


class _NotOffered(Note):
    """Why the wrapper of a view policy cannot act on a method."""


def check_method(
    name: str, folder: Path, only: Container[str] | None = None, views: str | None = None
) -> Iterator[Result]:
    """Run the checks of a method, in an empty folder, one result after another.

    Args:
        only: Names of the checks to run; None runs all.
        views: The view policy to check it with; None takes the method's own, then a loss with each other policy.

    Raises:
        SettingsError: No such method or policy is installed, or its file cannot be imported.
    """
    settings = small_settings(name)
    if views is not None:
        try:
            settings = replaced(settings, {"views": views})
        except ValidationError as error:
            raise SettingsError(first_fault(error)) from None
        if refusals := list(problems(settings, facts_of(settings, images=2 * BATCH, ranks=1))):
            raise SettingsError(refusals[0])
    checks: dict[str, _Check] = {
        "loss and gradients": _loss_and_gradients,
        "what a step changes": state_moves,
        "loss in float32": exact_loss,
        "two processes equal one": two_processes,
        "stopped equals uninterrupted": _resume,
        "checkpoint round trip": _checkpoint,
        "export round trip": _export,
        "one device": one_device,
        "replay on a GPU": replay,
    }
    for title, check in checks.items():
        if only is None or title in only:
            yield result_of(title, partial(check, settings, folder))
    if only is None and views is None:
        yield from _all_views(settings)


def _loss_and_gradients(settings: Settings, folder: Path) -> str:
    method = _built(settings)
    shapes = {name: buffer.shape for name, buffer in method.named_buffers()}
    found = _backward(method, settings, step=0)
    for name, buffer in method.named_buffers():
        if buffer.shape != shapes.get(name):
            raise Failure(
                f"the buffer {name} is {tuple(buffer.shape)} after a step: a resume needs the shape it began with"
            )
    for group in method.groups:
        if not any(re.search(group.pattern, name) for name, _ in method.named_parameters()):
            raise Failure(f"the pattern {group.pattern!r} of a parameter group is in the name of no parameter")
    trained = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    if not trained:
        raise Failure("no parameter is trained")
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    if without:
        raise Failure(
            f"no gradient for {first_of(without, 1)}: leave it out, set requires_grad to False, or say in which steps "
            "it has none: ParameterGroup(frozen=...)"
        )
    broken = [name for name, parameter in trained.items() if not bool(torch.isfinite(_gradient(parameter)).all())]
    if broken:
        raise Failure(f"the gradient of {first_of(broken, 1)} is not finite")
    constants = [name for name, parameter in method.named_parameters() if parameter.grad is not None]
    if extra := sorted(set(constants) - set(trained)):
        raise Failure(f"{first_of(extra, 1)} has a gradient and requires_grad False")
    if not any(float(_gradient(parameter).abs().max()) > 0 for parameter in trained.values()):
        raise Failure("every gradient is zero")
    return f"loss {found:.4f}; {len(trained)} trained parameters, all with a finite gradient"


def two_processes(settings: Settings, folder: Path) -> str:
    """Whether two processes compute what one does; Failure where they do not."""
    alone = two_steps(settings)
    if not _alike(alone, two_steps(settings)):
        raise Failure("a step gives other numbers when it is repeated: only torch's generator is seeded for it")
    together = _in_processes(settings, folder / "ranks")
    if not _alike(alone, two_steps(settings, stream=1)):
        return _same_state(together)
    for rank, found in enumerate(together):
        for name, value in alone.items():
            if name not in found:
                raise Failure(f"process {rank} has no {name}")
            difference = float((found[name].double() - value.double()).abs().max()) if value.numel() else 0.0
            scale = max(1.0, float(value.double().abs().max())) if value.numel() else 1.0
            if not difference <= _TOLERANCE * scale:
                advice = "; is it computed in float32? (losses.exact)" if difference < _FLOAT32 * scale else ""
                advice = advice or (_OF_ONE_PROCESS if name.startswith("state") else "")
                raise Failure(f"{name} differs by {difference:.2e} in process {rank} of 2{advice}")
    return (
        f"{len(alone)} losses, gradients and states within {_TOLERANCE:.0e} (float64, BatchNorm by running statistics)"
    )


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _same_state(together: Sequence[Mapping[str, Tensor]]) -> str:
    """Of a method that draws by torch's generator, which is another one in each process: their states must be equal."""
    for name, value in together[0].items():
        if name.startswith("state") and not torch.equal(value, together[1][name]):
            raise Failure(
                f"{name} differs between 2 processes: draw what changes state by a torch.Generator from facts.seed and "
                "now.step, or name the buffer in per_rank"
            )
    return "it draws by torch's generator, so that losses depend on the number of processes; their states are equal"


def _in_processes(settings: Settings, target: Path) -> list[dict[str, Tensor]]:
    work = json.dumps(settings.model_dump(mode="json"))
    refuse_failed(run_processes("leoclr.cli.methods.ranks", [str(target)], work, count=2, threads=1))
    return [load_file(f"{target}.{rank}") for rank in range(2)]


def _resume(settings: Settings, folder: Path) -> str:
    shards = photo_like(folder, _STEPS_PER_EPOCH * BATCH, settings.data.image_size)
    settings = replaced(settings, {"data.train": (str(shards),), "run.log_steps": 1})
    whole = train(settings, folder / "whole", None, _COMMAND, resume=False)
    taken = [0]

    def count(step: int, values: Mapping[str, float]) -> None:
        taken[0] = step

    def enough() -> bool:
        return taken[0] >= _STOP

    train(settings, folder / "stopped", None, _COMMAND, resume=False, on_metrics=count, asked_to_stop=enough)
    train(settings, folder / "stopped", None, _COMMAND, resume=True)
    advice = " after a resume: keep state in buffers, draw from now.step"
    of_whole, of_stopped = ({place.name: place for place in _checkpoints(folder / run)} for run in ("whole", "stopped"))
    assert of_whole.keys() == of_stopped.keys(), "both have those of the last two epochs"
    for name, place in of_whole.items():
        refuse_different(place, of_stopped[name], advice=advice)
    return f"{whole.steps} steps, stopped after {_STOP}, within an epoch: the same bits"


def _checkpoint(settings: Settings, folder: Path) -> str:
    method = _built(settings)
    _backward(method, settings, step=0)
    saved = save_checkpoint(_made(folder / "round-trip"), 1, {"model": method.state_dict()}, {})
    other = _built(settings)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.normal_()
    other.load_state_dict(load_checkpoint(saved).tensors["model"])
    losses = [_backward(one.eval(), settings, step=1, update=False) for one in (method, other)]
    if losses[0] != losses[1]:
        raise Failure(f"the loss after loading is {losses[1]!r} instead of {losses[0]!r}: some state is no buffer")
    return f"{len(method.state_dict())} tensors"


def _export(settings: Settings, folder: Path) -> str:
    run = folder / "whole"
    if not _checkpoints(run):
        raise Failure("there is no run to export, as its training failed")
    encoder = load_encoder(run)
    write_encoder(encoder, folder / "encoder.safetensors")
    side = settings.data.image_size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, again = (one.backbone(images) for one in (encoder, read_encoder(folder / "encoder.safetensors")))
    if float((features - again).abs().max()) > _EXPORT_TOLERANCE:
        raise Failure("the exported encoder has other features")
    place = next(iter(_built(settings).backbones()))
    return f"{place}, features of {features.shape[1]} numbers"


def _all_views(settings: Settings) -> Iterator[Result]:
    """A loss with each policy; those whose wrapper needs more than the method offers are one result."""
    wrapped = []
    for views in plugins(VIEWS):
        result = result_of(f"views {views}", partial(_views, settings, views))
        if isinstance(result.detail, _NotOffered):
            wrapped.append(views)
        else:
            yield result
    if wrapped:
        why = f"leoclr method check {settings.backend} --views {wrapped[0]}"
        yield Result("other views", True, f"{', '.join(wrapped)} need what it does not offer ({why})", noted=True)


def _views(settings: Settings, views: str) -> str:
    try:
        settings = replaced(settings, {"views": views})
    except ValidationError as error:  # the policy's fault, or it has no pairs, and the method needs some
        return Note(f"refused: {first_fault(error)}")
    if refusals := list(policy_problems(settings)):
        return _NotOffered(refusals[0])
    if refusals := list(problems(settings, facts_of(settings, images=2 * BATCH, ranks=1))):
        return Note(f"refused: {refusals[0]}")
    try:
        method = _built(settings)
    except RunError as error:  # the backbone does not take the size of a view
        return Note(f"refused: {error}")
    return f"loss {_backward(method, settings, step=0):.4f}"


def _built(settings: Settings) -> Method:
    return build.method(settings, _CPU, images=2 * BATCH)


def _backward(method: Method, settings: Settings, step: int, update: bool = True) -> float:
    """The loss of a batch of noise, after its backward pass in every phase and, with `update`, that of the method's own
    state."""
    generator = torch.Generator().manual_seed(step)
    policy = settings.view_policy
    views = {
        name: torch.randn(BATCH, 3, side, side, generator=generator)
        for name, side in policy.sides(settings.data.image_size).items()
    }
    torch.manual_seed(step)
    loss = float("nan")
    for phase in range(method.phases):
        now = Progress(step, 4, 2, phase)
        output = method(views, policy.pairs, now, **examples(method, policy.views, BATCH, _CPU))
        refuse_output(output)
        if not bool(torch.isfinite(output.loss)):
            raise Failure(f"the loss must be finite, and is {float(output.loss.detach())}")
        output.loss.backward()
        if update:
            with torch.no_grad():
                method.after_update(now)
        loss = float(output.loss.detach())
    return loss


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
