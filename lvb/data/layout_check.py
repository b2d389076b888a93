"""Looks at what lies in a data directory and says what to run next.

ImageNet comes as tars, as folders in several nestings and as prepared TFDS sets. Each
finding names one thing that is there, whether it can be used, and otherwise the
command that brings it a step further.
"""

import os
import shlex

from lvb.data import imagenet, layout_folders, tfds_source
from lvb.data.layout_folders import Finding

# Official sizes in bytes of the two archives.
TARS = {
    "ILSVRC2012_img_train.tar": 147_897_477_120,
    "ILSVRC2012_img_val.tar": 6_744_924_160,
}


def check_imagenet(data_dir: str | os.PathLike[str]) -> list[Finding]:
    """Returns what of ImageNet-1K lies in a directory, usable or not.

    Args:
      data_dir: the directory that a run would get as --data_dir.
    """
    root = os.path.abspath(os.path.expanduser(os.fspath(data_dir)))
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        return [
            Finding(
                "problem", f"{root} {what}", "give --data_dir an existing directory."
            )
        ]
    findings = _check_tfds(root)
    split_roots = layout_folders.find_split_roots(root)
    for split_root in split_roots:
        findings += layout_folders.check_folders(split_root, root)
    if not any(finding.state == "ready" for finding in findings):
        findings += _check_archives(root)
    if not findings:
        findings.append(
            Finding(
                "problem",
                f"{root} holds nothing of ImageNet that is known here",
                f"download {' and '.join(TARS)} from image-net.org (free, after "
                f"registration) into {root} and run this again.",
            )
        )
    return findings


def report(findings: list[Finding]) -> str:
    """Formats findings, two lines each."""
    lines = []
    for finding in findings:
        lines += [f"[{finding.state:7}] {finding.what}", f"{'->':>12} {finding.advice}"]
    return "\n".join(lines)


def _check_tfds(root: str) -> list[Finding]:
    if os.path.isfile(os.path.join(root, "dataset_info.json")):
        parent = os.path.dirname(os.path.dirname(root))
        return [_too_deep(root, parent)]
    if os.path.basename(root) == "imagenet2012" and tfds_source.versions(root):
        return [_too_deep(root, os.path.dirname(root))]
    directory = os.path.join(root, "imagenet2012")
    findings = []
    for name in layout_folders.listing(directory).directories:
        if name.startswith("incomplete."):
            findings.append(
                Finding(
                    "problem",
                    f"{os.path.join(directory, name)} was left by an interrupted build",
                    f"remove it and run '{_build_command(root)}' again.",
                )
            )
    for version in tfds_source.versions(directory):
        findings.append(_check_tfds_version(root, version))
    return findings


def _check_tfds_version(root: str, version: str) -> Finding:
    spec = f"imagenet2012:{version}"
    where = f"the TFDS set in {os.path.join(root, 'imagenet2012', version)}"
    try:
        sizes = {
            split: len(tfds_source.open_tfds(spec, split, data_dir=root))
            for split in imagenet.NUM_EXAMPLES
        }
    except ValueError as error:
        return Finding("problem", f"{where} cannot be used", str(error))
    counts = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    if sizes != imagenet.NUM_EXAMPLES:
        return Finding(
            "problem",
            f"{where} is not whole: {counts}, where "
            f"{layout_folders.official_sizes()} belong",
            f"remove it and run '{_build_command(root)}'.",
        )
    return Finding(
        "ready",
        f"{where} is whole: {counts}",
        f"train with data source 'tfds:{spec}' and --data_dir={shlex.quote(root)}.",
    )


def _too_deep(root: str, parent: str) -> Finding:
    return Finding(
        "problem",
        f"{root} is inside a TFDS set",
        f"give the directory above the set: --data_dir={shlex.quote(parent)}.",
    )


def _build_command(root: str, manual_dir: str | None = None) -> str:
    manual = f" --manual_dir={shlex.quote(manual_dir)}" if manual_dir else ""
    return (
        f"tfds build imagenet2012 --data_dir={shlex.quote(root)}{manual} "
        "--file_format=array_record"
    )


def _check_archives(root: str) -> list[Finding]:
    places = [root] + [
        os.path.join(root, *parts)
        for parts in (("downloads", "manual"), ("manual",), ("imagenet",))
    ]
    for place in places:
        others = layout_folders.listing(place).others
        found = [name for name in TARS if name in others]
        if found:
            return _check_tars(root, place, found)
        zips = [n for n in others if n.startswith("imagenet") and n.endswith(".zip")]
        if zips:
            return [
                Finding(
                    "problem",
                    f"{place} holds {zips[0]}, not unpacked",
                    f"run 'unzip -q {shlex.quote(os.path.join(place, zips[0]))} -d "
                    f"{shlex.quote(root)}' and this again.",
                )
            ]
        if any(name.endswith(".parquet") for name in others):
            return [
                Finding(
                    "problem",
                    f"{place} holds Parquet files, which are not read",
                    f"get {' and '.join(TARS)} instead.",
                )
            ]
    return []


def _check_tars(root: str, place: str, found: list[str]) -> list[Finding]:
    findings = []
    for name, size in TARS.items():
        path = os.path.join(place, name)
        if name not in found:
            what, advice = f"{path} is missing", "download it from image-net.org."
        elif os.path.getsize(path) != size:
            what = f"{path} has {os.path.getsize(path):,} of {size:,} bytes"
            advice = "continue or repeat its download."
        else:
            continue
        findings.append(Finding("problem", what, advice))
    if not findings:
        findings.append(
            Finding(
                "problem",
                f"{place} holds both archives, not prepared",
                f"run '{_build_command(root, place)}' (needs TensorFlow: pip install "
                "'lvb[tf]').",
            )
        )
    return findings
