"""`leoclr export`: write the encoder for another program."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leoclr.cli import terminal as console
from leoclr.cli.exporting.formats import ExportFormat, formats_of
from leoclr.cli.run.folder import RunFolder, existing_weights
from leoclr.datasets.errors import SettingsError

if TYPE_CHECKING:
    from leoclr.cli.exporting.export import ExportReport
    from leoclr.cli.run.encoders import LoadedEncoder


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Run, checkpoint, exported file or state dict; default: the newest run.",
        ),
    ] = None,
    format: Annotated[ExportFormat, typer.Option("--format", help="Format of the file.")] = ExportFormat.safetensors,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="File to write, or folder for hf; default: in the run's export folder.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone", metavar="NAME", help="Architecture of a state dict that does not identify it."),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence in the model card (hf), e.g. cc-by-4.0.")
    ] = None,
    no_views: Annotated[
        bool, typer.Option("--no-views", help="Omit views of training images from the model card (hf).")
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="Let the graph (onnx) take raw pixels, and resize, crop and normalise them."
        ),
    ] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder (hf) to the Hugging Face hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository of --push public; default: private.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export the encoder, without projector, and compare the file's features with the original's.

    A file whose features differ by more than 1e-5 (relative to the largest if that is above 1) is not kept. `hf` is a
    folder for timm, transformers and the Hugging Face hub.

    \b
    Examples:
      leoclr export --format hf -o my-encoder
      leoclr export --format hf --push me/my-encoder --license apache-2.0
      leoclr export --format torchvision
      leoclr export runs/first --format onnx --with-preprocessing -o encoder.onnx
      leoclr export moco_v2_800ep_pretrain.pth.tar --format safetensors
    """
    from leoclr.cli.exporting.push import push_folder, require_hub

    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise SettingsError(f"--license {license}: must be an identifier such as apache-2.0, cc-by-4.0 or other")
    if with_preprocessing and format is not ExportFormat.onnx:
        raise SettingsError("--with-preprocessing is part of an ONNX graph: add --format onnx")
    if output is not None and format not in (fitting := formats_of(output.name)):
        others = " or ".join(f"--format {other}" for other in fitting)
        raise SettingsError(f"-o {output}: --format {format} writes another kind of file; add {others}, or rename it")
    if push is not None:
        if not format.is_folder:
            raise SettingsError("--push uploads a folder: add --format hf")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
            raise SettingsError(f"--push {push}: must be OWNER/NAME")
        require_hub()
    existing_weights(checkpoint)
    from leoclr.cli.exporting.export import export_encoder
    from leoclr.cli.exporting.target import ExportOptions
    from leoclr.cli.run.encoders import load_encoder

    encoder = load_encoder(checkpoint, backbone)
    path = output or default_path(encoder.name, encoder.run, format, with_preprocessing)
    report = export_encoder(encoder, format, path, ExportOptions(license, not no_views, with_preprocessing))
    if as_json and push is None:
        console.print_json(_as_json(encoder, report))
    elif not as_json:
        _print_text(encoder, report, with_preprocessing)
    if push is not None:
        commit = push_folder(report.path, report.files, push, public)
        console.print_json(_as_json(encoder, report) | {"commit": commit}) if as_json else print(
            f"\nuploaded  {commit}"
        )


def default_path(backbone: str, run: Path | None, format: ExportFormat, takes_pixels: bool = False) -> Path:
    """Where the file goes when the user does not say: in the run, or in the working directory where there is none."""
    name = backbone.removeprefix("timm:").replace("/", "_")
    return RunFolder(run or Path(".")).exports / f"{name}{'.pixels' if takes_pixels else ''}{format.suffix}"


def _as_json(encoder: LoadedEncoder, report: ExportReport) -> dict[str, object]:
    return {
        "path": str(report.path),
        "format": str(report.format),
        "files": [str(file) for file in report.files],
        "bytes": report.bytes,
        "largest_difference": report.largest_difference,
        "preprocessing_difference": report.preprocessing_difference,
        "source": encoder.source,
        "backbone": encoder.name,
        "stem": encoder.stem,
        "width": encoder.width,
        "feature_dim": encoder.backbone.feature_dim,
        "image_size": encoder.image_size,
        "mean": encoder.mean,
        "std": encoder.std,
        "resize": asdict(encoder.resize),
        "digest": encoder.digest,
        "usage": report.usage,
    }


def _print_text(encoder: LoadedEncoder, report: ExportReport, takes_pixels: bool) -> None:
    size, megabytes = encoder.image_size, report.bytes / 1e6
    rows = {
        "wrote": f"{report.path} ({megabytes:.1f} MB)",
        "from": encoder.source,
        "backbone": f"{encoder.name}, {encoder.stem} stem, {encoder.backbone.feature_dim} features",
        "input": f"n x 3 x {size} x {size}, (pixels / 255 - mean) / std; mean {encoder.mean}, std {encoder.std}",
        "resizing": str(encoder.resize),
        "largest difference": f"{report.largest_difference:.1e} between this file's features and the original's",
    }
    if report.preprocessing_difference is not None:
        rows["preprocessing"] = (
            f"{report.preprocessing_difference:.1e} between its normalised pixels and the original's"
        )
    if takes_pixels:
        rows["input"] = "n x height x width x 3, RGB bytes of any height and width"
    for name, value in rows.items():
        print(f"{name:<18}  {value}")
    print()
    for line in report.usage:
        print(line)
