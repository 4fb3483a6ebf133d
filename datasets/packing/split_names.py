"""Names of folders that mean a split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from leoclr.datasets.errors import DataError

SPLITS = ("train", "val", "test", "unlabeled")
PLAIN_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
_OTHER_NAMES = {
    "training": "train",
    "trainval": "train",
    "dev": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "holdout": "val",
    "hold-out": "val",
    "hold_out": "val",
    "held-out": "val",
    "testing": "test",
}
_NAMES = PLAIN_NAMES | _OTHER_NAMES
# Short and foreign words that only lead to a question: as classes they may mean something else.
_WORDS = _NAMES | {
    **dict.fromkeys(("tr", "tra", "trn", "tng"), "train"),
    **dict.fromkeys(("vl", "vld", "cv", "validierung", "validacion", "validación", "validacao", "validação"), "val"),
    **dict.fromkeys(("te", "ts", "tst", "teste", "prueba", "pruebas", "prova"), "test"),
    **dict.fromkeys(
        ("entrenamiento", "entrainement", "entraînement", "treino", "treinamento", "addestramento"), "train"
    ),
    **dict.fromkeys(("训练", "训练集", "訓練", "訓練集", "学習", "훈련", "학습", "обучение"), "train"),
    **dict.fromkeys(("验证", "验证集", "驗證", "驗證集", "検証", "評価", "검증", "валидация"), "val"),
    **dict.fromkeys(("测试", "测试集", "測試", "測試集", "テスト", "테스트", "тест"), "test"),
}
_ADORNED = re.compile(rf"({'|'.join(_NAMES)})([ _.-]?(set|data|split|images?|imgs|folder))?[ _.-]?[0-9]{{0,4}}")
_BEGINNING = re.compile(r"(train|val|test)(?![a-z])|(train|val|test)[A-Z0-9_.-]")
_WORD = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")
_IMAGES = frozenset("image images img imgs jpegimages photo photos picture pictures rgb original originals".split())
_MASKS = frozenset(
    "mask masks msk msks label labels lbl annotation annotations anno annos ann segmentation segmentationclass "
    "segmentationobject seg gt groundtruth ground_truth target targets depth edges alpha matte trimap disparity".split()
)
_PART = re.compile(r"(.*?(?:images?|imgs?|parts?|folds?|batch|chunk|shard)[ _.-]?)[0-9]+", re.IGNORECASE)
_COMPANIONS = frozenset("query gallery probe labeled labelled extra".split())  # of a split, and hardly of a class
_EDGE = re.compile(r"[ _.-]")


def splits_of(folders: Iterable[str]) -> dict[str, str]:
    """The split of each folder whose name means one: `Training`, `val2017`, `test_set`, also where all names share a
    beginning or an end, as in `mnist_train` and `mnist_test`."""
    names = sorted(folders)
    found = {name: split for name in names if (split := _split(name))}
    if len(found) == len(names) or len(names) < 2:
        return found
    start = _whole_words(os.path.commonprefix(names))
    end = _whole_words(os.path.commonprefix([name[::-1] for name in names]))
    bare = {name: name[len(start) : len(name) - len(end)] for name in names}
    shared = {name: split for name, inner in bare.items() if (split := _split(inner))}
    return shared if len(shared) == len(names) else found


def is_plain(folder: str) -> bool:
    """Whether a name always means a split."""
    return folder.lower() in PLAIN_NAMES


def suspicious(folders: Iterable[str]) -> dict[str, str]:
    """Names that begin as those of two splits or more do, such as trainA and testA, or half of all names and more that
    hold the words of several splits, such as seg_train, seg_test and seg_pred, or all names of which each holds a word
    of some language that may mean one, such as tr and te, or names that are equal but for the word of a split, such as
    box_train and box_test; each with its split; else none."""
    names = sorted(folders)
    found = {name: match for name in names if (match := _BEGINNING.match(name) or _BEGINNING.match(name.lower()))}
    stems = {(match[1] or match[2]).lower() for match in found.values()}
    if len(stems) > 1:
        return {name: (match[1] or match[2]).lower() for name, match in sorted(found.items())}
    words = {name: [word.lower() for word in _WORD.split(unicodedata.normalize("NFC", name))] for name in names}
    for known, least in ((_NAMES, len(names) / 2), (_WORDS, len(names))):
        found_in = {name: [known[word] for word in words[name] if word in known] for name in names}
        meant = {name: splits[0] for name, splits in found_in.items() if splits}
        if len(set(meant.values())) > 1 and len(meant) >= least:
            return meant
    alike: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in names:
        for place, word in enumerate(words[name]):
            if word in _NAMES:
                alike[(*words[name][:place], "", *words[name][place + 1 :])][name] = _NAMES[word]
    return next((meant for meant in alike.values() if len(set(meant.values())) > 1), {})


def is_split_beside(split: str, others: Iterable[str]) -> bool:
    """Whether a folder of which the name means a split is one by its name, or by those beside it."""
    return split == "unlabeled" or any(other.lower() in _COMPANIONS for other in others)


def parts_of_samples(folders: Iterable[str]) -> bool:
    """Whether the names are those of images and of what belongs to them, such as images and masks, and of no class."""
    names = {name.lower() for name in folders}
    return len(names) > 1 and bool(names & _MASKS) and names <= _MASKS | _IMAGES


def numbered_parts(folders: Iterable[str]) -> bool:
    """Whether the names are those of the parts of a download, such as images_001 and images_002, equal but for a
    number."""
    found = [_PART.fullmatch(name) for name in folders]
    return len(found) > 1 and all(found) and len({match[1].lower() for match in found if match}) == 1


def parse_split_names(text: str) -> dict[str, str]:
    """Folder to split, from `train=Training,val=dev`; a split may be named more than once.

    Raises:
        DataError: It is anything else.
    """
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        split, equals, folder = (part.strip() for part in pair.partition("="))
        if not equals or split not in SPLITS or not folder or "/" in folder or folder in found:
            raise DataError(
                f"--split-names {text!r}: expected SPLIT=FOLDER pairs such as train=Training,test=Testing; splits are "
                f"{', '.join(SPLITS)}"
            )
        found[folder] = split
    return found


def repeated(splits: Mapping[str, str]) -> Sequence[str]:
    """Folders that mean the same split as another one."""
    values = list(splits.values())
    return sorted(folder for folder, split in splits.items() if values.count(split) > 1)


def _split(name: str) -> str | None:
    match = _ADORNED.fullmatch(name.strip().lower())
    return _NAMES[match[1]] if match else None


def _whole_words(common: str) -> str:
    """The common part of names up to its last separator."""
    edges = [match.end() for match in _EDGE.finditer(common)]
    return common[: edges[-1]] if edges else ""
