"""`leoclr check`: verify shards and their images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from leoclr.cli.config.sections import DataSettings
from leoclr.cli.terminal import print_json, progress, say, warn
from leoclr.datasets.wording import counted

if TYPE_CHECKING:
    from leoclr.datasets.shards.check import Fault

_FAULTY = 1
_SHOWN = 10  # shards whose warnings are printed; --json has all
MOST_FAULTS = 10_000  # that are told one by one: millions would take memory and be read by nobody


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Shards: ranges, globs, folders, index files or addresses.")
    ],
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Decode every image.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Verify shards against their index, and state for each fault how `leoclr train` would respond.

    In a folder with splits, all splits are checked. The exit code is 1 if there are faults.

    \b
    Examples:
      leoclr check shards/
      leoclr check 'shards/imagenet-{000..999}.tar' --no-decode
    """
    from leoclr.datasets.shards.check import check_shard
    from leoclr.datasets.shards.description import as_json as described
    from leoclr.datasets.shards.description import class_line, contents, hint, remarks
    from leoclr.datasets.shards.locate import indexed_data, with_all_splits

    named = with_all_splits(data)
    indexes, tally, found = indexed_data(named), _Tally(), []
    for index in indexes:
        place = index.shards[0].path.rpartition("/")[0] if index.shards else ""
        found.append({"folder": place} | described(index))
        for line in remarks(index, named):
            warn(f"{place}: {line}")
        if (advice := hint(index)) is not None:
            say(f"{place}: {advice}")
        if not json_output:
            print(f"{place}: {contents(index)}")
            if classes := class_line(index):
                print(f"    {classes}")
        with progress("checking", len(index), "images") as advance:
            for number in range(len(index.shards)):
                for fault in check_shard(index, number, decode, advance):
                    tally.add(fault)
    shards, samples = sum(len(index.shards) for index in indexes), sum(map(len, indexes))
    if json_output:
        report = {"shards": shards, "samples": samples, "decoded": decode, "data": found, "faults_in_all": tally.found}
        faults, warnings = ([asdict(fault) for fault in part] for part in (tally.faults, tally.warnings))
        print_json(report | {"faults": faults, "warnings": warnings})
    else:
        _print(tally, shards, samples, decode)
    if tally.faults:
        raise typer.Exit(_FAULTY)


@dataclass
class _Tally:
    """What was found.

    Attributes:
        faults: The first `MOST_FAULTS`.
        found: How many faults there are.
        skipped: How many of them are images that cannot be used.
    """

    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    found: int = 0
    skipped: int = 0

    def add(self, fault: Fault) -> None:
        from leoclr.datasets.shards.check import SKIPPED, USED

        if fault.consequence == USED:
            self.warnings.append(fault)
            return
        self.found += 1
        self.skipped += fault.consequence == SKIPPED
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)


def _print(tally: _Tally, shards: int, samples: int, decode: bool) -> None:
    from leoclr.datasets.shards.check import USED

    for fault in tally.faults:
        print(f"{fault.shard}: {fault.what}\n    -> {fault.consequence}")
    if tally.found > len(tally.faults):
        print(f"and {tally.found - len(tally.faults):,} more faults")
    for fault in tally.warnings[:_SHOWN]:
        print(f"warning: {fault.shard}: {fault.what}")
    if tally.warnings:
        count = len(tally.warnings)
        print(f"    -> {USED}" + (f" ({counted(count, 'shard')} in all)" if count > _SHOWN else ""))
    if tally.skipped:
        share = f"{tally.skipped / samples:.2%}; train stops above {DataSettings().max_bad_samples:.2%}"
        print(f"{counted(tally.skipped, 'image')} cannot be used: {share}")
    decoded = ", every image decoded" if decode and not tally.faults else ""
    print(f"{counted(shards, 'shard')}, {counted(samples, 'sample')}{decoded}: {counted(tally.found, 'fault')}")
