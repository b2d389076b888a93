"""Where the images of a benchmark lie: in class folders or in prepared TFDS sets."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lvb.data import (
    benchmarks,
    corrupted_source,
    corruptions,
    corruptions_weather,
    folder,
    imagenet_labels,
    sources,
    tfds_source,
)


class MissingData(ValueError):
    """The images of a benchmark are not there; the message says what to run."""


class Part(NamedTuple):
    """Images that are evaluated in one go.

    Attributes:
      name: "" for the only part, else such as "fog/3".
      origin: where the images come from, in words that leave out the machine's paths.
      open: opens the source.
      note: what else a reader of its figures must know.
    """

    name: str
    origin: str
    open: Callable[[], sources.Source]
    note: str = ""


def find_parts(
    benchmark: benchmarks.Benchmark,
    *,
    data_dir: str | os.PathLike[str] | None,
    seed: int = 0,
    names: Sequence[str] = corruptions.BENCHMARK,
    severities: Sequence[int] = corruptions.SEVERITIES,
    frost_dir: str | os.PathLike[str] | None = None,
) -> list[Part]:
    """Finds the images of a benchmark; folders are looked for before TFDS sets.

    Args:
      benchmark: a value of `BENCHMARKS`, or of `custom`.
      data_dir: below which everything lies.
      seed: of generated corruptions, and of the split of a custom folder.
      names: the corruptions of ImageNet-C to evaluate.
      severities: the severities of ImageNet-C to evaluate.
      frost_dir: photographs for generated frost, see `corruptions_weather`.

    Raises:
      MissingData: naming what is missing and what to run.
    """
    if not benchmark.of_imagenet:
        opener = functools.partial(
            sources.open_source, benchmark.name, "val", data_dir=data_dir, seed=seed
        )
        return [Part("", f"{benchmark.name.partition(':')[0]} source, val", opener)]
    if data_dir is None:
        raise MissingData(f"{benchmark.name} needs --data_dir, where its images lie.")
    root = pathlib.Path(data_dir).expanduser()
    if benchmark.name == "imagenet_c":
        return [
            _stored_part(benchmark, root, name, severity)
            for name in names
            for severity in severities
        ]
    origin, opener = _find(benchmark, root, benchmark.folders, benchmark.tfds)
    if benchmark.name != benchmarks.GENERATED:
        return [Part("", origin, opener)]
    photographs = ()
    if frost_dir is not None and "frost" in names:
        photographs = corruptions_weather.load_frost(frost_dir)
    note = "" if photographs else "frost: procedural, not the published photographs"
    return [
        Part(
            f"{name}/{severity}",
            f"generated with seed {seed} from {origin}, JPEG quality 85",
            functools.partial(
                _open_corrupted,
                opener,
                name=name,
                severity=severity,
                seed=seed,
                frost_photographs=photographs if name == "frost" else (),
            ),
            note if name == "frost" else "",
        )
        for name in names
        for severity in severities
    ]


def load_label_sets(
    source: sources.Source, data_dir: str | os.PathLike[str]
) -> list[list[int]]:
    """ReaL's label set of every example, from `real.json` or the TFDS set itself.

    Args:
      source: the validation set; its descriptions hold the names of the files.
      data_dir: holds real.json, or the prepared set imagenet2012_real.

    Raises:
      MissingData: when neither is there, or a file name is not the validation set's.
    """
    root = pathlib.Path(data_dir).expanduser()
    if (root / "real.json").is_file():
        rows = imagenet_labels.load_real_labels(root / "real.json")
        labels = dict(enumerate(rows, start=1))
    else:
        labels = _load_tfds_real_labels(root)
    label_sets = []
    for index in range(len(source)):
        name = source.describe(index)
        number = imagenet_labels.val_image_number(name)
        if number not in labels:
            raise MissingData(
                f"imagenet_real: {name} is no image of the validation set; ReaL knows"
                " ILSVRC2012_val_00000001 to _00050000 only."
            )
        label_sets.append(labels[number])
    return label_sets


def _load_tfds_real_labels(root: pathlib.Path) -> dict[int | None, list[int]]:
    """ReaL's label sets by the number of the image, from the TFDS records."""
    versions = tfds_source.versions(os.fspath(root / "imagenet2012_real"))
    if not versions:
        raise MissingData(
            f"imagenet_real: {root} lacks real.json; download it from"
            " github.com/google-research/reassessed-imagenet."
        )
    # Loaded here: the import takes a while and other sources do without.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(root / "imagenet2012_real" / versions[-1])
    records = builder.as_data_source(
        split="validation",
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    return {
        imagenet_labels.val_image_number(row["file_name"].decode()): [
            int(label) for label in row["real_label"]
        ]
        for row in (records[index] for index in range(len(records)))
    }


def _find(
    benchmark: benchmarks.Benchmark,
    root: pathlib.Path,
    folders: Sequence[str],
    tfds: str,
) -> tuple[str, Callable[[], sources.Source]]:
    """The first place that holds the images: (words, opener)."""
    for place in folders:
        directory = root / place
        if _has_class_folders(directory):
            words = "class folders" if place == "." else f"folder {place}"
            return words, functools.partial(folder.FolderSource, directory)
    if tfds and (root / tfds.partition("/")[0]).is_dir():
        try:
            tfds_source.open_tfds(tfds, "val", data_dir=root)
        except (FileNotFoundError, ValueError) as error:
            raise MissingData(f"{benchmark.name}: {error}") from None
        opener = functools.partial(tfds_source.open_tfds, tfds, "val", data_dir=root)
        return f"tfds:{tfds}", opener
    raise MissingData(
        f"{benchmark.name}: nothing in {root}; {benchmark.get.format(data_dir=root)},"
        f" or run 'tfds build {tfds} --data_dir={root} --file_format=array_record'."
    )


def _stored_part(
    benchmark: benchmarks.Benchmark, root: pathlib.Path, name: str, severity: int
) -> Part:
    group = corruptions.CORRUPTIONS[name].group
    folders = [
        f"{place}/{inner}{name}/{severity}"
        for place in benchmark.folders
        for inner in ("", f"{group}/")
    ]
    tfds = f"{benchmark.tfds}/{name}_{severity}"
    origin, opener = _find(benchmark, root, folders, tfds)
    # The place without the corruption, so that all parts have the same words.
    place = origin.partition("/")[0]
    kind = "published files" if place.startswith("folder") else "made by TFDS"
    return Part(f"{name}/{severity}", f"{kind}, {place}", opener)


def _open_corrupted(opener: Callable[[], sources.Source], **options: object) -> object:
    return corrupted_source.CorruptedSource(opener(), **options)


def _has_class_folders(directory: pathlib.Path) -> bool:
    """Whether it holds folders named by WordNet ids or by class numbers."""
    if not directory.is_dir():
        return False
    names = folder.class_directories(os.fspath(directory))
    return bool(names) and bool((imagenet_labels.class_indices(names) >= 0).any())
