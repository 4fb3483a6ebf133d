"""`leoclr certify`: check on this machine and these shards that runs lose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leoclr.cli.commands.base.flags import settings_of, with_settings
from leoclr.cli.config.flags import Given
from leoclr.cli.terminal import print_json, say
from leoclr.datasets.errors import SettingsError


@with_settings()
def certify(
    given: Given,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the record and the page are written.")
    ] = Path("certificate"),
    json_output: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Check in minutes, with the settings of a run, that it loses nothing; exit code 1 on a failure.

    Trains a few steps on this machine and these shards, with a smaller batch: without interruption, stopped, killed,
    and in other numbers of processes. Checks that every image comes once, that two processes compute what one does,
    and that all runs end alike. Writes certificate.json, with versions and digests, and certificate.html.

    \b
    Examples:
      leoclr certify --data shards/train
      leoclr certify --preset cifar10 --data shards/cifar10 --output runs/certificate --json
    """
    import tempfile
    import time

    settings = settings_of(given)
    if not settings.data.train:
        raise SettingsError("data.train is not set: name the shards to check with --data")

    from leoclr.cli.methods.certificate import certificate, certify_all, plans_of
    from leoclr.cli.methods.outcome import collected
    from leoclr.cli.reporting.certificate_page import certificate_page
    from leoclr.cli.scoring.records import write_record
    from leoclr.datasets.files import write_atomic

    began = time.monotonic()
    plans = plans_of(settings)
    say(f"checking runs of a few steps of {plans.settings.data.batch_size} images; this takes minutes")
    with tempfile.TemporaryDirectory() as folder:
        results = collected(certify_all(plans, Path(folder)), show=not json_output)
        record: dict[str, Any] = certificate(settings, plans, results, Path(folder), began)
    write_record(output / "certificate.json", record)
    write_atomic(output / "certificate.html", certificate_page(record).encode())
    if json_output:
        print_json(record)
    say(f"written to {output / 'certificate.json'} and {output / 'certificate.html'}")
    if not record["passed"]:
        raise typer.Exit(1)
