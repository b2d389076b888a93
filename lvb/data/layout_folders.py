"""ImageNet-1K as class folders: which nesting it is in and what it lacks."""

import importlib.resources
import os
import re
import shlex
from typing import NamedTuple

from lvb.data import folder, imagenet, imagenet_labels

_OTHER_NAMES = {
    "train": ("training", "Train", "ILSVRC2012_img_train"),
    "val": ("validation", "valid", "Val", "ILSVRC2012_img_val"),
}
_SEARCH_DEPTH = 3  # Kaggle's ILSVRC/Data/CLS-LOC is the deepest common nesting.
_MOST_NESTINGS = 16  # A directory with more inside holds classes or other things.
_CLASS_TAR = re.compile(r"n\d{8}\.tar")
_TRAIN_FILE = re.compile(r"(n\d{8})_\d+\.\w+")
_COMMAND = "python scripts/check_data.py imagenet2012 --data_dir"


class Finding(NamedTuple):
    """One thing found.

    Attributes:
      state: "ready" to train on, "part" of what is needed, or a "problem".
      what: what is there.
      advice: the data source to train with, or what to do next.
    """

    state: str
    what: str
    advice: str


class Listing(NamedTuple):
    """Sorted names in a directory by kind, hidden ones left out."""

    directories: list[str]
    images: list[str]
    others: list[str]


def listing(directory: str) -> Listing:
    """Returns the names in a directory; none if it does not exist."""
    names = Listing([], [], [])
    if os.path.isdir(directory):
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if folder.is_directory(entry):
                    names.directories.append(entry.name)
                elif entry.name.lower().endswith(folder.EXTENSIONS):
                    names.images.append(entry.name)
                else:
                    names.others.append(entry.name)
    return Listing(*(sorted(kind) for kind in names))


def official_sizes() -> str:
    """Names the sizes of the whole splits."""
    return ", ".join(f"{s} {size:,}" for s, size in imagenet.NUM_EXAMPLES.items())


def sort_flat(data_dir: str | os.PathLike[str]) -> int:
    """Moves images that lie flat in train/ or val/ into the folders of their classes.

    Training images carry their class in the file name; the classes of the validation
    images are in tensorflow_datasets. Files with other names stay.

    Args:
      data_dir: the directory with train/ or val/.

    Returns:
      The number of images moved.
    """
    labels = importlib.resources.files("tensorflow_datasets").joinpath(
        "datasets/imagenet2012/validation_labels.txt"
    )
    wnids = labels.read_text(encoding="ascii").split()
    num_moved = 0
    for split in ("train", "val"):
        directory = os.path.join(data_dir, split)
        for name in listing(directory).images:
            number = imagenet_labels.val_image_number(name)
            match = _TRAIN_FILE.fullmatch(name)
            if split == "val" and number is not None and number <= len(wnids):
                wnid = wnids[number - 1]
            elif split == "train" and match:
                wnid = match[1]
            else:
                continue
            os.makedirs(os.path.join(directory, wnid), exist_ok=True)
            os.rename(
                os.path.join(directory, name), os.path.join(directory, wnid, name)
            )
            num_moved += 1
    return num_moved


def find_split_roots(root: str) -> list[str]:
    """Directories at or below the root that look as if they held train and val."""
    wanted = {"train", "val", *_OTHER_NAMES["train"], *_OTHER_NAMES["val"]}
    level = [root]
    for _ in range(_SEARCH_DEPTH + 1):
        found, below = [], []
        for directory in level:
            names = listing(directory).directories
            if wanted & set(names) or any(map(imagenet.is_wnid, names)):
                found.append(directory)
            elif len(names) <= _MOST_NESTINGS:
                below += [os.path.join(directory, name) for name in names]
        if found:
            return found
        level = below
    return []


def check_folders(split_root: str, data_dir: str) -> list[Finding]:
    """Returns one finding if train and val are whole, else one for each of them.

    Args:
      split_root: a directory that `find_split_roots` returned.
      data_dir: the directory the search began at.
    """
    names = listing(split_root).directories
    if any(map(imagenet.is_wnid, names)):
        return [_class_folders_at_top(split_root)]
    findings = [_check_split(split_root, split) for split in ("train", "val")]
    if all(finding.state == "part" for finding in findings):
        return [
            Finding(
                "ready",
                f"{split_root} is whole: {official_sizes()}",
                f"train with data source 'folder:{split_root}'.",
            )
        ]
    if split_root != data_dir:
        findings = [
            f._replace(what=f"{f.what} (found below {data_dir})") for f in findings
        ]
    return findings


def _class_folders_at_top(root: str) -> Finding:
    wnids = [n for n in listing(root).directories if imagenet.is_wnid(n)]
    num_images = len(listing(os.path.join(root, wnids[0])).images)
    split = "val" if 0 < num_images <= 50 else "train"
    target = os.path.join(root, split)
    return Finding(
        "problem",
        f"{root} holds {len(wnids):,} class folders but no train/ and val/",
        f"run 'mkdir {shlex.quote(target)} && mv {shlex.quote(root)}/n[0-9]* "
        f"{shlex.quote(target)}/' (they look like {split}) and run this again.",
    )


def _check_split(split_root: str, split: str) -> Finding:
    directory = os.path.join(split_root, split)
    quoted = shlex.quote(directory)
    if not os.path.isdir(directory):
        return _missing_split(split_root, split)
    inside = listing(directory)
    class_tars = [name for name in inside.others if _CLASS_TAR.fullmatch(name)]
    if class_tars:
        return Finding(
            "problem",
            f"{directory} holds {len(class_tars):,} class archives, not unpacked",
            f"run 'cd {quoted} && for t in n*.tar; do mkdir -p ${{t%.tar}} && "
            "tar -xf $t -C ${t%.tar} && rm $t; done'.",
        )
    if inside.images and not inside.directories:
        return _flat_split(split_root, split, len(inside.images))
    nested = len(inside.directories) == 1 and not imagenet.is_wnid(
        inside.directories[0]
    )
    if nested:
        inner = shlex.quote(os.path.join(directory, inside.directories[0]))
        return Finding(
            "problem",
            f"{directory} holds only the folder {inside.directories[0]}",
            f"move its content up: 'mv {inner}/* {quoted}/ && rmdir {inner}'.",
        )
    return _check_classes(directory, split, inside.directories)


def _missing_split(split_root: str, split: str) -> Finding:
    names = listing(split_root).directories
    target = os.path.join(split_root, split)
    for name in _OTHER_NAMES[split]:
        if name in names:
            source = shlex.quote(os.path.join(split_root, name))
            return Finding(
                "problem",
                f"{split_root} calls its {split} split {name}/",
                f"run 'mv {source} {shlex.quote(target)}'.",
            )
    return Finding(
        "problem",
        f"{target} is missing",
        f"unpack ILSVRC2012_img_{split}.tar there ('mkdir {shlex.quote(target)} && "
        f"tar -xf ILSVRC2012_img_{split}.tar -C {shlex.quote(target)}') and run this "
        "again.",
    )


def _flat_split(split_root: str, split: str, num_images: int) -> Finding:
    return Finding(
        "problem",
        f"{os.path.join(split_root, split)} holds {num_images:,} images "
        "without class folders",
        f"run '{_COMMAND} {shlex.quote(split_root)} --sort_flat' to move them.",
    )


def _check_classes(directory: str, split: str, names: list[str]) -> Finding:
    expected = set(imagenet_labels.synsets())
    if not any(name in expected for name in names):
        return Finding(
            "problem",
            f"the class folders of {directory} are not WordNet ids: "
            f"{imagenet.some(names) or 'there are none'}",
            f"unpack ILSVRC2012_img_{split}.tar again, whose folders have ids such as "
            "n01440764; labels would not match published models otherwise.",
        )
    extra = sorted(set(names) - expected)
    if extra:
        return Finding(
            "problem",
            f"{directory} has folders that are none of the 1,000 classes: "
            f"{imagenet.some(extra)}",
            "move them elsewhere.",
        )
    counts = {
        name: sum(1 for _ in folder.picture_files(directory, name)) for name in names
    }
    missing = sorted(expected - {name for name, count in counts.items() if count})
    if missing:
        return Finding(
            "problem",
            f"{directory} lacks images of {len(missing):,} classes: "
            f"{imagenet.some(missing)}",
            f"unpack these classes from ILSVRC2012_img_{split}.tar again.",
        )
    total = sum(counts.values())
    official = imagenet.NUM_EXAMPLES[split]
    if total != official:
        few = sorted(counts, key=counts.__getitem__)[:3]
        return Finding(
            "problem",
            f"{directory} holds {total:,} images in 1,000 classes, where {official:,} "
            f"belong; fewest in {', '.join(f'{n} ({counts[n]})' for n in few)}",
            f"unpack ILSVRC2012_img_{split}.tar again; a partial copy gives other "
            "results than the published ones.",
        )
    return Finding("part", f"{directory} is whole: {total:,} images", "nothing to do.")
