"""What a method returns, checked before its backward pass: what is wrong is told in the words of the contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from leoclr.backends.method import Output
from leoclr.datasets.errors import RunError

# What else a line of metrics.jsonl holds; `embedding_std` and `effective_rank` may be the method's own.
_OF_THE_RUN = ("step", "epoch", "loss", "lr", "images_per_second", "waiting", "bad_images", "knn")


def refuse_output(output: Any) -> None:
    """Raise RunError where a method's `forward` returns what is no `Output`. Looks at types and shapes alone, so that
    the host does not wait for the device."""
    if not isinstance(output, Output):
        raise RunError(f"forward must return Output(loss, embeddings), and returns {_what(output)}")
    loss = output.loss
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise RunError(f"the loss must be a tensor of one number, without dimensions, and is {_what(loss)}")
    if not loss.requires_grad:
        raise RunError("the loss has no gradient: it was detached, or made under no_grad or of constants alone")
    if output.embeddings is not None and not (isinstance(output.embeddings, Tensor) and output.embeddings.ndim == 2):
        raise RunError(f"Output.embeddings must be (n, dim) or None, and is {_what(output.embeddings)}")
    for name, value in output.metrics.items():
        if name in _OF_THE_RUN or not name.isprintable():
            raise RunError(f"a metric is called {name!r}: choose another name than {', '.join(_OF_THE_RUN)}, in a line")
        if not isinstance(value, Tensor) or value.ndim:
            raise RunError(
                f"the metric {name!r} must be a tensor of one number, without dimensions, and is {_what(value)}"
            )


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of the shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"
