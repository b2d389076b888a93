"""Prepared TFDS sets in ArrayRecord files, read without TensorFlow."""

import json
import os
import re
import shlex
from typing import Any

from lvb.data import decode, imagenet, sources

# Parts of a TFDS split, for sets that were prepared with "train" alone. TFDS shuffles
# the examples when it prepares a set, so the tail is a random sample.
_TRAIN_PART, _VAL_PART = "train[:80%]", "train[80%:]"

_SPEC = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>[\d.]+))?")


class TfdsSource:
    """One split of a prepared set; pictures stay encoded until a worker decodes them.

    Attributes:
      class_names: names of the label feature, in label order.
    """

    def __init__(self, directory: str, split: str) -> None:
        """Opens the records.

        Args:
          directory: version directory of the set, holding dataset_info.json.
          split: a TFDS split such as "train" or "train[:80%]".

        Raises:
          ValueError: the set has no picture or no class label, or lacks files.
        """
        # Loaded here: the import takes a while and other sources do without.
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        # A set may have TFRecord files beside.
        builder.info.set_file_format(
            "array_record", override=True, override_if_initialized=True
        )
        self._image, self._label = _feature_names(builder.info.features, directory)
        missing = _missing_files(builder.info.splits[split].file_instructions)
        if missing:
            raise ValueError(
                f"{directory} lacks {len(missing)} of the files of {split!r}, for "
                f"instance {os.path.basename(missing[0])}; copy the set again or "
                "prepare it anew."
            )
        features = builder.info.features
        self._file_name = "file_name" if "file_name" in features else None
        wanted = {self._image, self._label, self._file_name} - {None}
        # Only these are parsed, and a picture's bytes stay bytes.
        self._parser = tfds.features.FeaturesDict({k: features[k] for k in wanted})
        self._decoders = {self._image: tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self.class_names = tuple(features[self._label].names)
        self._name = f"{builder.info.full_name}/{split}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> sources.Example:
        record = self._record(index)
        return sources.Example(record[self._image], int(record[self._label]))

    def describe(self, index: int) -> str:
        """Names example `index`, with its file name where the set keeps one."""
        name = f"{self._name}[{index}]"
        if self._file_name is None:
            return name
        try:
            return f"{name} ({self._record(index)[self._file_name].decode()})"
        except decode.BrokenImage:
            return name

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self._parser.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
        except Exception as error:
            # A damaged record raises what its parser meets.
            reason = " ".join(str(error).split())
            raise decode.BrokenImage(f"the record is damaged ({reason})") from error


def open_tfds(
    name: str, split: str, *, data_dir: str | os.PathLike[str] | None
) -> TfdsSource:
    """Opens a set prepared by `tfds build` below `data_dir`.

    "train" is the set's train split. "val" is its validation split, or else its test
    split; a set with a train split only is divided 80 : 20.

    Args:
      name: "name", "name:version", "name/config" or "name/config:version"; without a
        version the newest one prepared.
      split: "train" or "val".
      data_dir: the TFDS data directory.

    Raises:
      FileNotFoundError: the set or the version is not there; says what is.
      ValueError: the name does not parse, the files are TFRecord only, or they do not
        hold labelled pictures; says which command to run.
    """
    parsed = _SPEC.fullmatch(name)
    if parsed is None:
        raise ValueError(
            f"data source 'tfds:{name}' does not parse; write 'tfds:name', "
            "'tfds:name:version' or 'tfds:name/config:version'."
        )
    if data_dir is None:
        raise ValueError(
            f"data source 'tfds:{name}' needs --data_dir, the directory that 'tfds "
            "build' prepared it in."
        )
    directory = _find_version(parsed, os.fspath(data_dir))
    splits = _check_prepared(directory)
    source = TfdsSource(directory, _tfds_split(splits, split, directory))
    if parsed["name"] == "imagenet2012":
        imagenet.check_size(
            len(source), split=split, class_names=source.class_names, where=directory
        )
    return source


def versions(directory: str) -> list[str]:
    """Returns the versions prepared in a set's directory, oldest first."""
    if not os.path.isdir(directory):
        return []
    found = [name for name in os.listdir(directory) if re.fullmatch(r"[\d.]+", name)]
    return sorted(found, key=lambda v: [int(part) for part in v.split(".") if part])


def convert_command(version_directory: str) -> str:
    """Returns the command that makes a TFRecord set readable without TensorFlow."""
    return (
        f"tfds convert_format --dataset_version_dir={shlex.quote(version_directory)} "
        "--out_file_format=array_record"
    )


def _find_version(parsed: re.Match[str], data_dir: str) -> str:
    """Returns the version directory that a parsed name means."""
    parts = [part for part in (parsed["name"], parsed["config"]) if part]
    directory = os.path.join(data_dir, *parts)
    found = versions(directory)
    wanted = parsed["version"] or (found[-1] if found else None)
    if wanted in found:
        return os.path.join(directory, wanted)
    full_name = "/".join(parts)
    if found:
        raise FileNotFoundError(
            f"{full_name} has no version {wanted} in {data_dir}; there is "
            f"{', '.join(found)}."
        )
    configs = _configs(directory)
    if configs:
        raise FileNotFoundError(
            f"{full_name} in {data_dir} has configs; write "
            f"{' or '.join(f'tfds:{full_name}/{config}' for config in configs)}."
        )
    raise FileNotFoundError(
        f"{full_name} is not prepared in {data_dir}; run 'tfds build {full_name} "
        f"--data_dir={data_dir} --file_format=array_record' (needs TensorFlow: pip "
        "install 'lvb[tf]')."
    )


def _configs(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    names = sorted(os.listdir(directory))
    return [name for name in names if versions(os.path.join(directory, name))]


def _check_prepared(directory: str) -> list[str]:
    """Returns the splits of a prepared set, refusing one without ArrayRecord files."""
    path = os.path.join(directory, "dataset_info.json")
    try:
        with open(path, encoding="utf-8") as file:
            info = json.load(file)
        formats = [info.get("fileFormat", "tfrecord")]
        formats += info.get("alternativeFileFormats", [])
        splits = [split["name"] for split in info["splits"]]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); an interrupted 'tfds build' leaves no "
            "whole set: run it again."
        ) from error
    if "array_record" not in formats:
        raise ValueError(
            f"{directory} holds {' and '.join(formats)} files only, which need "
            f"TensorFlow at every read; run '{convert_command(directory)}' once."
        )
    return splits


def _tfds_split(splits: list[str], split: str, directory: str) -> str:
    """Returns the TFDS split that "train" or "val" means."""
    held_out = [name for name in ("validation", "val", "test") if name in splits]
    if split == "val" and held_out:
        return held_out[0]
    if "train" not in splits:
        raise ValueError(
            f"{directory} has the splits {', '.join(splits)} and none for {split!r}."
        )
    if held_out:
        return "train"
    return _TRAIN_PART if split == "train" else _VAL_PART


def _feature_names(features: Any, directory: str) -> tuple[str, str]:
    """Returns the names of the picture and of the class label feature."""
    from tensorflow_datasets import features as kinds

    if not isinstance(features, kinds.FeaturesDict):
        features = {}
    chosen = []
    for preferred, kind in (("image", kinds.Image), ("label", kinds.ClassLabel)):
        names = [name for name in features if isinstance(features[name], kind)]
        if preferred in names:
            names = [preferred]
        if len(names) != 1:
            raise ValueError(
                f"{directory} has {len(names)} {kind.__name__} features among "
                f"{sorted(features)}, where one called {preferred!r} or a single one "
                "is needed."
            )
        chosen += names
    return chosen[0], chosen[1]


def _missing_files(instructions: list[Any]) -> list[str]:
    names = [os.fspath(instruction.filename) for instruction in instructions]
    return [name for name in names if not os.path.exists(name)]
