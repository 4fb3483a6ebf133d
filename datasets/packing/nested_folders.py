"""Folders within folders, by the names of the files in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

_MANY = 5  # so many folders for each name of those in them: the names are kinds
_PADDED = 5  # digits at least of a number that a program gave a folder


def first_folder(name: str) -> str:
    """The outermost folder of a path; empty where the file lies in none."""
    return name.partition("/")[0] if "/" in name else ""


def wrapper_of(images: Sequence[str], is_split: Callable[[str], bool]) -> str:
    """The folders around everything, with a `/` behind each; a split's folder is not one of them."""
    wrapper = ""
    while True:
        folder = first_folder(images[0].removeprefix(wrapper))
        inside = f"{wrapper}{folder}/"
        if not folder or is_split(folder) or not all(path.startswith(inside) for path in images):
            return wrapper
        wrapper = inside


def numbered_thousands(names: Sequence[str]) -> bool:
    """Whether the folders are those that programs make for every so many files, named by the number of the first: the
    files' own numbers begin with it (`00012/000120034.jpg`) or are rounded down to it (`01000/01234.png`)."""
    return len({first_folder(name) for name in names}) > 1 and all(map(_is_in_its_thousand, names))


def _is_in_its_thousand(name: str) -> bool:
    folder, number = first_folder(name), name.rpartition("/")[2].partition(".")[0]
    if not (len(folder) >= _PADDED and folder.isdecimal() and number.isdecimal()):
        return False
    if len(number) > len(folder):
        return number.startswith(folder)
    return len(number) == len(folder) and int(number) // 1000 * 1000 == int(folder)


def folders_within(names: Sequence[str]) -> list[str]:
    """The folders in the first folders (`a/abbey`), where most files lie in such and one first folder holds several."""
    inner = [name.split("/", 2)[:2] for name in names if name.count("/") > 1]
    found = {tuple(pair) for pair in inner}
    outer = {folder for folder, _ in found}
    if 2 * len(inner) <= len(names) or len(found) == len(outer) or len(set(map(first_folder, names))) < 2:
        return []
    return sorted("/".join(pair) for pair in found)


def shared_folders(within: Sequence[Sequence[str]]) -> set[str]:
    """The names of inner folders that look like classes, from the files of each outer folder: those that all have, two
    or more that half have, or all, where few of them lie in many outer folders. One may lack some of them."""
    counts = Counter(name for names in within for name in several_folders(names) or _innermost(names))
    often = {name for name, count in counts.items() if count > 1}
    half = {name for name in often if 2 * counts[name] >= len(within)}
    if len(half) > 1 or (len(often) == len(counts) > 1 and _MANY * len(counts) <= len(within)):
        return half if len(half) > 1 else often
    return set.intersection(*map(several_folders, within))


def several_folders(names: Sequence[str]) -> set[str]:
    """The folders that hold the files of a folder, looking through such as hold all of it; none if there is one."""
    wrapper = wrapper_of(names, lambda folder: False)
    folders = {folder for name in names if (folder := first_folder(name[len(wrapper) :]))}
    return folders if len(folders) > 1 else set()


def _innermost(names: Sequence[str]) -> set[str]:
    """The last of the folders around all files of a folder."""
    folders = wrapper_of(names, lambda folder: False).split("/")[:-1]
    return set(folders[-1:])
