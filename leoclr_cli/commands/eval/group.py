"""`leoclr eval`: how good the features of an encoder are. Each command is in a file of its own."""

from __future__ import annotations

import typer

from leoclr.cli.commands.eval import compare as eval_compare_command
from leoclr.cli.commands.eval import detection as eval_detection_command
from leoclr.cli.commands.eval import knn as eval_knn_command
from leoclr.cli.commands.eval import label_curve as eval_label_curve_command
from leoclr.cli.commands.eval import linear as eval_linear_command
from leoclr.cli.commands.eval import robustness as eval_robustness_command
from leoclr.cli.commands.eval import semisup as eval_semisup_command
from leoclr.cli.commands.eval import transfer as eval_transfer_command
from leoclr.cli.commands.parsing import LeoclrCommand

_HELP = """Score an encoder: k-NN, linear probes, robustness to cropping, fine-tuning.

Without an argument the newest run is scored, on its own data. Features are computed once and kept.

\b
Examples:
  leoclr eval knn
  leoclr eval linear runs/first
  leoclr eval robustness --crop random
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)

app.command(cls=LeoclrCommand, short_help="Classify images by their neighbours.")(eval_knn_command.knn)
app.command(cls=LeoclrCommand, short_help="Train a linear classifier on the frozen encoder.")(
    eval_linear_command.linear
)
app.command(cls=LeoclrCommand, short_help="What random crops cost.")(eval_robustness_command.robustness)
app.command(cls=LeoclrCommand, short_help="Fine-tune with a part of the labels.")(eval_semisup_command.semisup)
app.command("label-curve", cls=LeoclrCommand, short_help="Fine-tune with more and more of the labels.")(
    eval_label_curve_command.label_curve
)
app.command(cls=LeoclrCommand, short_help="Train on another data set.")(eval_transfer_command.transfer)
app.command(cls=LeoclrCommand, short_help="Fine-tune a detector on boxes.")(eval_detection_command.detection)
app.command(cls=LeoclrCommand, short_help="Compare two files of predictions.")(eval_compare_command.compare)
