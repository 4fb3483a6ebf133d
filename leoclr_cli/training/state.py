"""What of a run must survive a resume: tensors, and a few values. Position in the data, learning rate and all
randomness follow from the settings and the number of the step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from leoclr.backends.methods.moco import MoCo
from leoclr.backends.methods.simclr import SimCLR
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import Checkpoint, save_checkpoint
from leoclr.cli.run.versions import versions
from leoclr.cli.training.optimizers import load_optimizer_tensors, optimizer_tensors
from leoclr.datasets.errors import CheckpointError, RunError
from leoclr.datasets.shards.index import Index


class RunState:
    """Both encoders, the queue and its head, the optimizer's memory, and what the rest of a checkpoint says."""

    def __init__(
        self,
        settings: Settings,
        index: Index,
        backend: MoCo | SimCLR,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
    ) -> None:
        self._settings, self._index, self._backend, self._optimizer = settings, index, backend, optimizer
        self._accelerator = accelerator

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By group and name, on whatever device they are."""
        return {"model": self._backend.state_dict(), "optimizer": optimizer_tensors(self._optimizer)}

    def save(self, folder: Path, step: int, **more: Any) -> Path:
        """Write the checkpoint of `step` into a folder of checkpoints; `more` are values of state.json."""
        scaler = self._accelerator.scaler
        state = {
            "step": step,
            **more,
            "settings": self._settings.model_dump(mode="json"),
            "data": {"digest": self._index.digest, "samples": len(self._index)},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "versions": versions(),
        }
        return save_checkpoint(folder, step, self.tensors(), state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Take everything over from a checkpoint of the same run.

        Raises:
            RunError: It was trained on other data.
            CheckpointError: Its tensors do not fit the settings.
        """
        data, index = checkpoint.state["data"], self._index
        # Names of classes may have been learnt since: they are no part of what is trained on.
        if data["digest"] not in (index.digest, replace(index, classes=()).digest):
            raise RunError(
                f"{checkpoint.path} was trained on other data ({data['samples']:,} images, digest "
                f"{data['digest'][:12]}) than {', '.join(self._settings.data.train)} ({len(index):,} images, "
                f"digest {index.digest[:12]}); resume on the same shards"
            )
        try:
            self._backend.load_state_dict(checkpoint.tensors["model"])
            load_optimizer_tensors(self._optimizer, checkpoint.tensors["optimizer"])
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            detail = " ".join(str(error).split())
            raise CheckpointError(f"{checkpoint.path} does not fit the settings: {detail[:600]}") from None
        scaler = self._accelerator.scaler
        if scaler is not None and checkpoint.state["scaler"] is not None:
            scaler.load_state_dict(checkpoint.state["scaler"])
