"""Signs of collapse: embeddings that are nearly equal, and a loss that tells no image from another.

A sign may pass: under MoCo with a short queue, the embeddings draw together in the first steps and spread again. One
that lasts is collapse, and more steps do not help. `Alarm` stops a run where a sign lasts for `run.collapse_steps`
steps. It reports where the embeddings become nearly equal and where that ends; a loss at chance is usual in the first
steps and is reported once it has lasted.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from leoclr.backends.settings import RunFacts
from leoclr.backends.spread import spread
from leoclr.cli.config.settings import Settings
from leoclr.cli.terminal import warn
from leoclr.cli.training.rescue import Unsound
from leoclr.datasets.errors import SettingsError

_NARROW = 0.01  # of `embedding_std`; an untrained ResNet lies around 0.1, a passing dip above 0.02
_AT_CHANCE = 0.985  # of the loss at chance; a collapsed run lay at 0.990 to 0.996, a healthy one below 0.9


def measures(embeddings: Tensor | None) -> dict[str, Tensor]:
    """Spread and effective rank of embeddings, `(n, d)`, taken to length one; nothing where there are none."""
    if embeddings is None:
        return {}
    deviation, rank = spread(F.normalize(embeddings.float(), dim=1))
    return {"embedding_std": deviation, "effective_rank": rank}


class Alarm:
    """Watches the metrics of a run for collapse.

    Args:
        facts: Of the run, from which its method tells the loss at chance.
        speaks: Whether this process is the one that warns.
    """

    def __init__(self, settings: Settings, facts: RunFacts, speaks: bool) -> None:
        self._settings, self._speaks = settings.run, speaks
        # Terms that a view policy adds to the loss are not the method's to know.
        self._chance = None if settings.view_policy.needs else settings.method.chance(facts)
        if self._chance is not None and self._chance <= 0:
            raise SettingsError(f"chance of {settings.backend} must be above 0, got {self._chance:g}; None for no sign")
        self._since: int | None = None
        self._told = self._reported = False

    def look(self, step: int, values: Mapping[str, float]) -> bool:
        """Look at the metrics after a step, which all processes must have alike. True while there is a sign.

        Raises:
            Unsound: A sign has lasted too long, and `run.on_collapse` is stop.
        """
        sign = self._sign(values)
        if sign is None:
            if self._told:
                self._warn(f"the embeddings are spread again at step {step}")
            self._since, self._told, self._reported = None, False, False
            return False
        if self._since is None:
            self._since = step
        if _narrow(values) and not self._told:
            self._told = True
            self._warn(f"{sign} at step {step}: a dip that passes, or collapse, if it lasts")
        if step - self._since >= self._settings.collapse_steps and not self._reported:
            self._reported = True
            found = f"collapse: {sign} at step {step}, as at every measured step since {self._since}"
            if self._settings.on_collapse == "stop":
                raise Unsound(
                    f"{found}; the last checkpoint before that is kept. Begin again with a smaller --lr, more warm-up "
                    "(optimizer.warmup_epochs) or other settings of the method, or resume with --set "
                    "run.on_collapse=warn"
                )
            self._warn(found)
        return True

    def _sign(self, values: Mapping[str, float]) -> str | None:
        if _narrow(values):
            return f"the embeddings are nearly equal (embedding_std {values['embedding_std']:.4f}, below {_NARROW})"
        if self._chance is not None and values["loss"] >= _AT_CHANCE * self._chance:
            return f"the loss, {values['loss']:.2f}, is near that of embeddings all alike, {self._chance:.2f}"
        return None

    def _warn(self, line: str) -> None:
        if self._speaks:
            warn(line)


def _narrow(values: Mapping[str, float]) -> bool:
    return values.get("embedding_std", 1.0) < _NARROW
