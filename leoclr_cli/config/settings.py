"""All settings of a training run.

The tree has two levels, section and key (`moco.temperature`), plus `backend` and `views` at the top. It is frozen and
refuses unknown keys, NaN and wrong types. `leoclr.cli.config.resolve` reads the values from presets, files, environment
and flags.

The sections of the chosen method and view policy are in the methods' own files; `leoclr.cli.config.plugins` finds them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from leoclr.backends.settings import MethodSettings, Strict
from leoclr.cli.config.plugins import METHODS, VIEWS, method_settings, plugin, plugins, policy_settings, view_policy
from leoclr.cli.config.sections import (
    AugmentationSettings,
    DataSettings,
    EncoderSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
)
from leoclr.cli.config.view_changes import wrong_changes
from leoclr.datasets.errors import SettingsError
from leoclr.datasets.views import PolicySettings, ViewPolicy


def _installed(group: str, name: str) -> str:
    try:
        names = tuple(plugins(group))
    except SettingsError as error:
        raise ValueError(str(error)) from None
    if name not in names:
        listed = " or ".join(filter(None, (", ".join(f"'{one}'" for one in names[:-1]), f"'{names[-1]}'")))
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": listed})
    return name


Backend = Annotated[str, AfterValidator(lambda name: _installed(METHODS, name))]
Views = Annotated[str, AfterValidator(lambda name: _installed(VIEWS, name))]


class Settings(Strict):
    """All settings of `leoclr train`.

    Attributes:
        method: The section of the chosen method; in files and records it has the method's name.
        policy: The section of the chosen view policy, likewise; None where it has no settings.
    """

    backend: Backend = Field(default="moco", description="Method; `leoclr method list` shows the installed ones.")
    views: Views = Field(
        default="leoclr",
        description="View policy: the views of an image and their positive pairs; default: that of the method.",
    )
    data: DataSettings = DataSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    encoder: EncoderSettings = EncoderSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    run: RunSettings = RunSettings()
    method: SerializeAsAny[MethodSettings] = Field(default=None, validate_default=False)  # type: ignore[assignment]
    policy: SerializeAsAny[PolicySettings] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_sections(cls, values: Any) -> Any:
        """Read the sections of the method and the policy; those of others, which old records hold, are left out."""
        if not isinstance(values, dict):
            return values
        backend = _installed(METHODS, str(values.get("backend", "moco")))
        views = _installed(VIEWS, str(values.get("views", "leoclr")))
        others = {one.section for group in (METHODS, VIEWS) for one in plugins(group).values()}
        kept = {key: value for key, value in values.items() if key not in others}
        try:
            section, of_policy = method_settings(backend), policy_settings(views)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        own = values.get("method") or values.get(plugin(METHODS, backend).section, {})
        kept["method"] = section.model_validate(own)
        if of_policy is not None:
            own = values.get("policy") or values.get(plugin(VIEWS, views).section, {})
            kept["policy"] = of_policy.model_validate(own)
        return kept

    @property
    def view_policy(self) -> ViewPolicy:
        """The views of an image and their pairs."""
        if self.policy is None:
            return view_policy(self.views)
        made = self.policy.policy()
        if not isinstance(made, ViewPolicy):
            raise SettingsError(f"views {self.views}: policy() must return a ViewPolicy, not {type(made).__name__}")
        return made

    @model_serializer(mode="wrap")
    def _as_sections(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        method, policy = written.pop("method"), written.pop("policy")
        written[plugin(METHODS, self.backend).section] = method
        if policy is not None:
            written[plugin(VIEWS, self.views).section] = policy
        return written

    @model_validator(mode="after")
    def _values_fit_together(self) -> Settings:
        """What no single value can break: a line for each problem, with its keys in full so that layers finds them."""
        problems = list[str]()
        if self.optimizer.warmup_epochs > self.train.epochs:
            problems.append("optimizer.warmup_epochs must not be more than train.epochs")
        if self.data.batch_size % self.train.accumulation:
            problems.append("data.batch_size must be a multiple of train.accumulation")
        if self.augmentation.reduced_decoding and self.augmentation.executor == "pillow":
            problems.append("augmentation.reduced_decoding is not for augmentation.executor pillow")
        if self.augmentation.reduced_decoding and self.data.resident == "yes":
            problems.append("augmentation.reduced_decoding is not for data.resident yes")
        if self.train.precision == "fp16" and self.run.device == "cpu":
            problems.append("train.precision fp16 needs a GPU, and run.device is cpu; bf16 works on both")
        policy = self.view_policy
        if not policy.pairs and self.method.needs_pairs:
            problems.append(f"views {policy.name}: there are no pairs, so that nothing would be pulled together")
        problems += wrong_changes(policy, self.augmentation)
        if problems:
            raise ValueError("\n".join(problems))
        return self
