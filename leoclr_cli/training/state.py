"""State needed to resume bit for bit: tensors and a few values.

Position in the data, learning rate and all randomness follow from the settings and the number of the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from leoclr.backends.distributed import gather, rank, ranks
from leoclr.backends.method import Method
from leoclr.backends.networks.batchnorm import has_batch_norm
from leoclr.cli.config.settings import Settings
from leoclr.cli.preflight.checks import facts_of, resume_remarks
from leoclr.cli.run.checkpoint import STATE, Checkpoint, save_checkpoint
from leoclr.cli.run.versions import environment, versions
from leoclr.cli.training.optimizers import load_optimizer_tensors, optimizer_tensors
from leoclr.datasets.errors import CheckpointError, RunError, first_fault
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.spot_check import changed_sample, spot_check
from leoclr.datasets.wording import in_a_line


class SavedValues(BaseModel):
    """What a resumed run reads of state.json."""

    model_config = ConfigDict(strict=True)

    class Data(BaseModel):
        model_config = ConfigDict(strict=True)
        digest: str
        samples: int
        spot_check: list[int] = []  # which earlier versions did not save

    data: Data
    bad_images: list[str]
    scaler: dict[str, Any] | None = None
    environment: dict[str, str | int] = {}  # which earlier versions did not save

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> SavedValues:
        """Those of a checkpoint; CheckpointError where they are others."""
        try:
            return cls.model_validate(checkpoint.state)
        except ValidationError as error:
            raise CheckpointError(f"{checkpoint.path / STATE} holds no state of a run ({first_fault(error)})") from None


class RunState:
    """All parameters and buffers of the method, the optimizer's memory, and the values of state.json."""

    def __init__(
        self,
        settings: Settings,
        index: Index,
        method: Method,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        self._settings, self._index, self._method, self._optimizer = settings, index, method, optimizer
        self._accelerator = accelerator
        self._spot_check = spot_check(index)  # of the images as they are before the first step

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By group and name, on whatever device they are. Where the method has buffers of each rank's own, all ranks
        must ask at once: they come one after another, in rank order."""
        model = self._method.state_dict()
        model |= {name: gather(model[name]) for name in self._method.per_rank}
        return {"model": model, "optimizer": optimizer_tensors(self._optimizer)}

    def save(self, folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], **more: Any) -> Path:
        """Write the checkpoint of `step` into a folder of checkpoints; `more` are values of state.json."""
        scaler = self._accelerator.scaler
        state = {
            "step": step,
            **more,
            "settings": self._settings.model_dump(mode="json"),
            "data": {
                "digest": self._index.digest,
                "samples": len(self._index),
                "spot_check": self._spot_check,
            },
            "encoder": next(iter(self._method.backbones())),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "versions": versions(),
            "environment": self._environment(),
        }
        return save_checkpoint(folder, step, tensors, state)

    def load(self, checkpoint: Checkpoint) -> list[str]:
        """Take everything over from a checkpoint of the same run; returns what is not as before, in lines.

        Raises:
            RunError: It was trained on other data.
            CheckpointError: Its tensors do not fit the settings.
        """
        saved, index = SavedValues.of(checkpoint), self._index
        # Names of classes may have been learnt since: they are no part of what is trained on.
        if saved.data.digest not in (index.digest, replace(index, classes=()).digest):
            raise RunError(
                f"{checkpoint.path} was trained on other data ({saved.data.samples:,} images, digest "
                f"{saved.data.digest[:12]}) than {', '.join(self._settings.data.train)} ({len(index):,} images, "
                f"digest {index.digest[:12]}); resume on the same shards"
            )
        if (number := changed_sample(index, saved.data.spot_check, self._spot_check)) is not None:
            raise RunError(
                f"{index.shards[int(index.shard[number])].path}: sample {index.key(number)!r} has other bytes than "
                f"when {checkpoint.path} was saved, at the same place; resume on the same shards"
            )
        try:
            self._method.load_state_dict(self._own_part(checkpoint.tensors["model"]))
            load_optimizer_tensors(self._optimizer, checkpoint.tensors["optimizer"])
            scaler = self._accelerator.scaler
            if scaler is not None and saved.scaler is not None:
                scaler.load_state_dict(saved.scaler)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{checkpoint.path} does not fit the settings: {in_a_line(error, 600)}") from None
        before, now = saved.environment, self._environment()
        facts = facts_of(self._settings, len(index), ranks())
        return list(resume_remarks(self._settings, before, now, facts, has_batch_norm(self._method)))

    def _environment(self) -> dict[str, str | int]:
        return environment(self._accelerator.device, self._accelerator.num_processes)

    def _own_part(self, model: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this rank: buffers that differ between ranks are split anew among however many there are."""
        own = {}
        for name in self._method.per_rank:
            whole, wanted = model[name], self._method.get_buffer(name)
            if len(whole) != len(wanted) * ranks():
                raise ValueError(
                    f"{name} of {len(whole)} rows cannot be split among {ranks()} processes; resume with as many "
                    "processes as before"
                )
            own[name] = whole[rank() * len(wanted) :][: len(wanted)]
        return model | own
