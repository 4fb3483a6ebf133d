"""`leoclr check`: verify shards and their images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from leoclr.cli.config.sections import DataSettings
from leoclr.cli.terminal import print_json, progress, say, warn
from leoclr.datasets.wording import counted

_FAULTY = 1
_SHOWN = 10  # shards whose warnings are printed; --json has all
MOST_FAULTS = 10_000  # that are told one by one: millions would take memory and be read by nobody


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Shards: brace ranges, globs, folders or index files.")
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
    from leoclr.datasets.shards.check import SKIPPED, USED, Fault, check_shard
    from leoclr.datasets.shards.description import as_json as described
    from leoclr.datasets.shards.description import class_line, contents, hint, remarks
    from leoclr.datasets.shards.locate import indexed_data, with_all_splits

    faults: list[Fault] = []
    warnings: list[Fault] = []
    shards = samples = found_faults = skipped = 0
    found = []
    for index in indexed_data(with_all_splits(data)):
        place = index.shards[0].path.rpartition("/")[0] if index.shards else ""
        found.append({"folder": place} | described(index))
        for line in remarks(index):
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
                    if fault.consequence == USED:
                        warnings.append(fault)
                        continue
                    found_faults, skipped = found_faults + 1, skipped + (fault.consequence == SKIPPED)
                    if len(faults) < MOST_FAULTS:
                        faults.append(fault)
        shards, samples = shards + len(index.shards), samples + len(index)
    share = DataSettings().max_bad_samples
    if json_output:
        report = {"shards": shards, "samples": samples, "decoded": decode, "data": found, "faults_in_all": found_faults}
        print_json(report | {"faults": [asdict(fault) for fault in faults], "warnings": [asdict(w) for w in warnings]})
    else:
        for fault in faults:
            print(f"{fault.shard}: {fault.what}\n    -> {fault.consequence}")
        if found_faults > len(faults):
            print(f"and {found_faults - len(faults):,} more faults")
        for fault in warnings[:_SHOWN]:
            print(f"warning: {fault.shard}: {fault.what}")
        if warnings:
            more = f" ({counted(len(warnings), 'shard')} in all)" if len(warnings) > _SHOWN else ""
            print(f"    -> {USED}{more}")
        if skipped:
            print(f"{counted(skipped, 'image')} cannot be used: {skipped / samples:.2%}; train stops above {share:.2%}")
        decoded = ", every image decoded" if decode and not faults else ""
        print(f"{counted(shards, 'shard')}, {counted(samples, 'sample')}{decoded}: {counted(found_faults, 'fault')}")
    if faults:
        raise typer.Exit(_FAULTY)
