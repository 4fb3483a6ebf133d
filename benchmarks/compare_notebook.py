"""A run of the MoCo authors' CIFAR-10 recipe beside what their notebook printed, epoch by epoch.

Run: leoclr train --preset cifar10 --views pairwise --data CIFAR10 --output RUN --set encoder.projector_layers=1 \
         --set optimizer.warmup_epochs=0 --set run.checkpoint_epochs=1 --set run.knn_epochs=0
     python benchmarks/compare_notebook.py RUN NOTEBOOK [--epochs 1,5,10] [--json]

NOTEBOOK is colab/moco_cifar10_demo.ipynb of facebookresearch/moco at f736491, with its output; its code is not run.
The run may be stopped at any epoch: the notebook's learning rate hardly falls in the first ones, and two runs of it
differ by less than a point. Losses are means over an epoch; k-NN (k 200, temperature 0.1) looks at the output of the
projector, as the notebook's does, and at the backbone's features, as `leoclr eval knn` does.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from leoclr.backends.networks.encoder import contrastive_encoder
from leoclr.cli.config.sections import EncoderSettings
from leoclr.cli.config.settings import Settings
from leoclr.cli.run.checkpoint import load_checkpoint, step_folder
from leoclr.cli.run.encoders import load_encoder
from leoclr.datasets.shards.index import Index
from leoclr.datasets.shards.locate import open_data
from leoclr.evals.features.extract import Precision, extract_features
from leoclr.evals.features.preprocessing import Preprocessing, WholeImage
from leoclr.evals.probes.knn import knn_accuracy

_TRAIN = re.compile(r"Train Epoch: \[(\d+)/\d+\], lr: [\d.]+, Loss: ([\d.]+): 100%")
_TEST = re.compile(r"Test Epoch: \[(\d+)/\d+\] Acc@1:([\d.]+)%: 100%")


def printed(notebook: Path) -> dict[int, tuple[float, float]]:
    """Loss and k-NN in percent by epoch, as the notebook printed them."""
    text = notebook.read_text("utf-8")
    losses, scores = ({int(epoch): float(value) for epoch, value in p.findall(text)} for p in (_TRAIN, _TEST))
    return {epoch: (losses[epoch], scores[epoch]) for epoch in losses.keys() & scores.keys()}


def finished_epochs(run: Path) -> dict[int, tuple[float, int]]:
    """The mean loss and the last step of each. A line of metrics.jsonl is a mean over the steps since the last line."""
    found: dict[int, tuple[float, int]] = {}
    total, begin, before = 0.0, 0, 0
    for line in (run / "metrics.jsonl").read_text("utf-8").splitlines():
        metrics = json.loads(line)
        if "loss" in metrics:
            step, epoch = metrics["step"], metrics["epoch"]
            total += metrics["loss"] * (step - before)
            before = step
            if epoch == int(epoch):
                found[int(epoch)] = (total / (step - begin), step)
                total, begin = 0.0, step
    return found


def neighbours(
    checkpoint: Path, head: EncoderSettings, indexes: tuple[Index, Index], precision: Precision
) -> tuple[float, float]:
    """k-NN in percent on the output of the projector and on the backbone's features."""
    encoder = load_encoder(checkpoint)
    model = load_checkpoint(checkpoint, groups=("model",)).tensors["model"]
    projector = contrastive_encoder(
        encoder.backbone, head.projector_layers, head.projector_hidden, head.projector_dim
    ).projector
    prefix = "encoder.projector."
    projector.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in model.items() if name.startswith(prefix)}
    )
    preprocessing = Preprocessing(WholeImage(encoder.image_size), encoder.mean, encoder.std)
    backbone = encoder.backbone.to(memory_format=torch.channels_last)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for index in indexes:
        found = extract_features(backbone, index, preprocessing, precision=precision, workers=1)
        features.append(torch.from_numpy(found.features))
        labels.append(torch.from_numpy(found.labels))
    with torch.inference_mode():
        projected = [projector(of_split) for of_split in features]
    behind, pooled = (
        100 * knn_accuracy(train, labels[0], test, labels[1])["top1"] for train, test in (projected, features)
    )
    return behind, pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--epochs", help="Those of the k-NN scores; all checkpoints if left out.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about = json.loads((arguments.run / "run.json").read_text("utf-8"))
    indexes = (open_data(about["data"]["train"]), open_data(about["data"]["val"]))
    settings = Settings.model_validate(about["settings"])
    precision: Precision = "bf16" if settings.train.precision == "bf16" else "float32"
    theirs, ours = printed(arguments.notebook), finished_epochs(arguments.run)
    wanted = {int(epoch) for epoch in arguments.epochs.split(",")} if arguments.epochs else set(ours)
    rows = []
    for epoch in sorted(ours.keys() & theirs.keys()):
        loss, step = ours[epoch]
        row = {"epoch": epoch, "loss": loss, "their loss": theirs[epoch][0], "their k-NN": theirs[epoch][1]}
        checkpoint = step_folder(arguments.run / "checkpoints", step)
        if epoch in wanted and checkpoint.exists():
            row["k-NN, projector"], row["k-NN, backbone"] = neighbours(checkpoint, settings.encoder, indexes, precision)
        rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    columns = ("epoch", "loss", "their loss", "k-NN, projector", "their k-NN", "k-NN, backbone")
    print("  ".join(columns))
    for row in rows:
        cells = (f"{row[c]:.{0 if c == 'epoch' else 2}f}" if c in row else "" for c in columns)
        print("  ".join(cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=True)))


if __name__ == "__main__":
    main()
