"""Wrappers: code of a view policy that acts on batches or on the loss.

A wrapper is a mixin, found by the entry point `leoclr.wrappers` of its policy's name. Its methods go before those of
the method that it wraps, `class (Wrapper, Method)`: it calls the method's own forward, and pulls predictions of its own
by the method's own loss. State of the method keeps its names, and state of the wrapper is added to it.
"""

from __future__ import annotations

from torch import Tensor

from leoclr.backends.method import Facts, Output, PairMethod
from leoclr.backends.settings import MethodSettings, Pairs


class Wrapper(PairMethod):
    """Base of wrappers.

    Attributes:
        of_policy: Settings of the view policy.
        draws: Seed of what the wrapper draws.
    """

    def __init__(self, settings: MethodSettings, facts: Facts) -> None:
        super().__init__(settings, facts)
        self.of_policy, self.draws = facts.policy, facts.seed


def with_term(output: Output, name: str, term: Tensor, weight: float = 1.0) -> Output:
    """An output with another term in its loss, which is among its metrics under a name."""
    return output._replace(loss=output.loss + weight * term, metrics={**output.metrics, name: term.detach()})


def targets_of(anchor: str, pairs: Pairs, output: Output) -> list[Tensor]:
    """What an anchor is pulled to."""
    return [output.targets[positive] for name, positive in pairs if name == anchor]
