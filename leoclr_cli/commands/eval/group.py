"""`leoclr eval`: scores of an encoder, one file per command."""

from __future__ import annotations

import typer

from leoclr.cli.commands.base.lazy import Entry, group_of

_HELP = """Score an encoder: k-NN, linear probes, robustness to cropping, fine-tuning.

Without an argument the newest run is scored on its own data. Features are computed once and cached.

\b
Examples:
  leoclr eval knn
  leoclr eval linear runs/first
  leoclr eval robustness --crop random
"""

COMMANDS = {
    "knn": Entry("leoclr.cli.commands.eval.knn:knn", "Classify images by their nearest neighbours."),
    "linear": Entry("leoclr.cli.commands.eval.linear:linear", "Train a linear classifier on the frozen encoder."),
    "robustness": Entry("leoclr.cli.commands.eval.robustness:robustness", "Measure the accuracy lost on random crops."),
    "semisup": Entry("leoclr.cli.commands.eval.semisup:semisup", "Fine-tune with part of the labels."),
    "label-curve": Entry(
        "leoclr.cli.commands.eval.label_curve:label_curve", "Fine-tune with growing shares of the labels."
    ),
    "transfer": Entry("leoclr.cli.commands.eval.transfer:transfer", "Train on another data set."),
    "detection": Entry("leoclr.cli.commands.eval.detection:detection", "Fine-tune a detector on boxes."),
    "forgetting": Entry(
        "leoclr.cli.commands.eval.forgetting:forgetting", "Measure the gain on new data and the loss on old data."
    ),
    "compare": Entry("leoclr.cli.commands.eval.compare:compare", "Compare two files of predictions."),
}

app = typer.Typer(help=_HELP, cls=group_of(COMMANDS), rich_markup_mode=None)
