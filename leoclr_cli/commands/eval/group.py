"""`leoclr eval`: how good the features of an encoder are. Each command is in a file of its own."""

from __future__ import annotations

import typer

from leoclr.cli.commands.lazy import Entry, group_of

_HELP = """Score an encoder: k-NN, linear probes, robustness to cropping, fine-tuning.

Without an argument the newest run is scored, on its own data. Features are computed once and kept.

\b
Examples:
  leoclr eval knn
  leoclr eval linear runs/first
  leoclr eval robustness --crop random
"""

COMMANDS = {
    "knn": Entry("leoclr.cli.commands.eval.knn:knn", "Classify images by their neighbours."),
    "linear": Entry("leoclr.cli.commands.eval.linear:linear", "Train a linear classifier on the frozen encoder."),
    "robustness": Entry("leoclr.cli.commands.eval.robustness:robustness", "What random crops cost."),
    "semisup": Entry("leoclr.cli.commands.eval.semisup:semisup", "Fine-tune with a part of the labels."),
    "label-curve": Entry(
        "leoclr.cli.commands.eval.label_curve:label_curve", "Fine-tune with more and more of the labels."
    ),
    "transfer": Entry("leoclr.cli.commands.eval.transfer:transfer", "Train on another data set."),
    "detection": Entry("leoclr.cli.commands.eval.detection:detection", "Fine-tune a detector on boxes."),
    "forgetting": Entry("leoclr.cli.commands.eval.forgetting:forgetting", "Gain on new data, loss on the old."),
    "compare": Entry("leoclr.cli.commands.eval.compare:compare", "Compare two files of predictions."),
}

app = typer.Typer(help=_HELP, cls=group_of(COMMANDS), rich_markup_mode=None)
