"""Pictures in one directory per class.

Only the file names are kept, as one array of bytes, so that a source of a million
pictures costs tens of megabytes and travels to worker processes in a moment.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np

from lvb.data import imagenet, sources

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
VAL_SHARE = 0.2  # Of each class, where the folder has no split of its own. Ours.

_MISNAMED_VAL = ("valid", "validation", "test")
_MAX_FILE_BYTES = 1 << 30  # A larger file is no picture.


class FolderSource:
    """Every picture below a directory that has one sub-directory per class.

    Attributes:
      class_names: names of the class directories, sorted unless given.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        class_names: Sequence[str] | None = None,
        allow_empty: bool = False,
    ) -> None:
        """Lists the files; opens none.

        Class directories may be nested and may be or hold symbolic links; a directory
        that a link leads to twice is read once. Hidden files and directories, and files
        without a picture's extension, are skipped.

        Args:
          directory: the parent of the class directories.
          class_names: the classes in label order; others found are an error. By default
            all class directories, sorted.
          allow_empty: accepts classes without pictures.

        Raises:
          FileNotFoundError: the directory does not exist.
          ValueError: there are no pictures, or not two classes, or a class is empty.
        """
        root = os.path.expanduser(os.fspath(directory))
        found = set(class_directories(root))
        names = tuple(sorted(found) if class_names is None else class_names)
        if class_names is None and len(found) < 2:
            raise ValueError(_too_few_classes(root, sorted(found)))
        foreign = sorted(found - set(names))
        if foreign:
            raise ValueError(
                f"{root} has the class folders {imagenet.some(foreign)}, which the "
                "training split lacks; both splits need the same classes."
            )
        files = [
            sorted(picture_files(root, name)) if name in found else [] for name in names
        ]
        empty = [name for name, listed in zip(names, files, strict=True) if not listed]
        if len(empty) == len(names):
            raise ValueError(
                f"{root} holds no images in its {len(names)} class folders; files "
                f"ending in one of {', '.join(EXTENSIONS)} count."
            )
        if empty and not allow_empty:
            raise ValueError(
                f"the class folders {imagenet.some(empty)} in {root} hold no images "
                "(links that lead back are not followed); add images or remove them."
            )
        self.class_names = names
        self._root = root
        # Relative paths as bytes, because file names need not be text.
        self._files = np.array([path for listed in files for path in listed])
        self._labels = np.repeat(
            np.arange(len(names), dtype=np.int32), [len(listed) for listed in files]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> sources.Example:
        path = os.path.join(self._root, os.fsdecode(self._files[index]))
        # A pipe that took the file's place would block for ever without the flag.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is no regular file")
            if size > _MAX_FILE_BYTES:
                raise OSError(f"its {size:,} bytes are too many for a picture")
            return sources.Example(file.read(), int(self._labels[index]))

    def describe(self, index: int) -> str:
        """Names the file of example `index`; what cannot be printed is escaped."""
        path = os.path.join(self._root, os.fsdecode(self._files[index]))
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)

    def part(self, *, val: bool, seed: int) -> "FolderSource":
        """Returns one side of a stratified split; "val" has `VAL_SHARE` of each class.

        The side of a file follows from its relative path and the seed alone, by a hash,
        so it is the same on every machine. A class of one picture has it in "train".

        Args:
          val: which side.
          seed: of the split.
        """
        keep = np.zeros(len(self), bool)
        for label in range(len(self.class_names)):
            rows = np.flatnonzero(self._labels == label)
            keys = [_split_key(self._files[row], seed) for row in rows]
            num_val = max(round(VAL_SHARE * rows.size), int(rows.size > 1))
            keep[rows[np.argsort(keys)[:num_val]]] = True
        part = object.__new__(FolderSource)
        part.class_names, part._root = self.class_names, self._root
        rows = np.flatnonzero(keep if val else ~keep)
        part._files, part._labels = self._files[rows], self._labels[rows]
        return part


def open_folder(
    directory: str | os.PathLike[str], split: str, *, seed: int = 0
) -> FolderSource:
    """Returns the pictures of one split below a directory.

    With `train/` and `val/` inside, those are the splits, and the classes are those of
    `train/`. Otherwise the class directories inside (or inside `train/`, when it is
    alone) are divided by `FolderSource.part`. Class folders named by the WordNet ids of
    ImageNet-1K are checked against its 1,000 ids, and full splits against its sizes.

    Args:
      directory: the data set.
      split: "train" or "val".
      seed: of the split when the directory has none.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: its layout does not fit; the message says what to do.
    """
    root = os.path.expanduser(os.fspath(directory))
    train, val = os.path.join(root, "train"), os.path.join(root, "val")
    inside = class_directories(root)
    if "val" not in inside:
        misnamed = [name for name in _MISNAMED_VAL if name in inside]
        if "train" in inside and misnamed:
            raise ValueError(
                f"{root} has train/ and {misnamed[0]}/; rename {misnamed[0]}/ to val/."
            )
        source = FolderSource(train if "train" in inside else root)
        return _checked(source.part(val=split == "val", seed=seed))
    _refuse_flat(val)
    if "train" not in inside and split == "train":
        raise ValueError(
            f"{root} has val/ but no train/; put the training images into train/, one "
            "folder per class."
        )
    if split == "train":
        return _checked(FolderSource(train), split="train")
    classes = sorted(class_directories(train)) if "train" in inside else None
    source = FolderSource(val, class_names=classes, allow_empty=classes is not None)
    return _checked(source, split="val")


def class_directories(directory: str) -> list[str]:
    """Returns the names of the directories inside one, hidden ones excepted.

    Raises:
      FileNotFoundError: it does not exist.
      NotADirectoryError: it is a file.
    """
    try:
        with os.scandir(directory) as entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and is_directory(entry)
            ]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the data directory {directory} does not exist; check the path."
        ) from None
    except NotADirectoryError:
        raise NotADirectoryError(
            f"{directory} is a file; give the directory with one folder per class."
        ) from None


def picture_files(root: str, name: str) -> Iterator[bytes]:
    """Yields the pictures below root/name, as paths relative to root.

    A symbolic link that leads nowhere is listed, so that the loader can name it.
    """
    base = os.fsencode(root)
    seen = {_identity(os.stat(base))}
    pending = [os.fsencode(name)]
    extensions = tuple(os.fsencode(extension) for extension in EXTENSIONS)
    while pending:
        directory = pending.pop()
        path = os.path.join(base, directory)
        identity = _identity(os.stat(path))
        if identity in seen:  # A link back to the root or to a directory already read.
            continue
        seen.add(identity)
        with os.scandir(path) as entries:
            for entry in entries:
                relative = os.path.join(directory, entry.name)
                if entry.name.startswith(b"."):
                    continue
                if is_directory(entry):
                    pending.append(relative)
                elif entry.name.lower().endswith(extensions) and _is_file_or_dangling(
                    entry
                ):
                    yield relative


def is_directory(entry: os.DirEntry) -> bool:
    """Whether an entry is a directory or leads to one; a link to itself does not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file_or_dangling(entry: os.DirEntry) -> bool:
    """A file, or a link to one or to nothing; a pipe or a device would block."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))
    except OSError:
        return True


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _split_key(relative_path: bytes, seed: int) -> bytes:
    return hashlib.sha256(b"%d/%s" % (seed, relative_path)).digest()


def _checked(source: FolderSource, split: str | None = None) -> FolderSource:
    where = source._root
    imagenet.check_classes(source.class_names, where=where)
    if split is not None:
        imagenet.check_size(
            len(source), split=split, class_names=source.class_names, where=where
        )
    return source


def _refuse_flat(directory: str) -> None:
    """Refuses a val/ whose images lie directly in it, as ILSVRC distributes them."""
    if class_directories(directory):
        return
    pictures = _flat_pictures(directory)
    if any(name.startswith("ILSVRC2012_val_") for name in pictures):
        raise ValueError(
            f"{directory} holds ImageNet's validation images without class folders; "
            "run 'python scripts/check_data.py imagenet2012 --data_dir "
            f"{os.path.dirname(directory)} --sort_flat' to move them into theirs."
        )
    if pictures:
        raise ValueError(_too_few_classes(directory, ()))


def _too_few_classes(directory: str, found: Sequence[str]) -> str:
    if found:
        return (
            f"{directory} holds one class folder, {found[0]!r}; training needs at "
            "least two, each a folder named by its class."
        )
    num_flat = len(_flat_pictures(directory))
    if num_flat:
        return (
            f"{directory} holds {num_flat:,} images and no class folders; put each "
            "image into a folder named by its class."
        )
    return (
        f"{directory} holds no images; put them into one folder per class, or into "
        "train/ and val/ with one folder per class in each."
    )


def _flat_pictures(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return [e.name for e in entries if e.name.lower().endswith(EXTENSIONS)]
