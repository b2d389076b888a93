"""One benchmark with one set of weights: from images to figures; for commands."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lvb import restore
from lvb.data import (
    benchmark_parts,
    benchmarks,
    class_map,
    corruptions,
    imagenet_labels,
    loader,
    reader,
    resampling,
    sources,
)
from lvb.metrics import label_sets, records, summary
from lvb.training import digest, prediction, sharding
from lvb.training import meter as meter_lib

OWN = "own"
_CROP_RATIOS = {"256/224": 0.875, "stored": 1.0}


class Options(NamedTuple):
    """What the user may choose.

    Attributes:
      data_dir: where the benchmarks lie.
      batch_size: images per step, over all devices.
      num_workers: decoding processes; 0 decodes in threads.
      image_size: test resolution in pixels; None for the model's.
      crop_ratio: in place of the protocol's, except for stored crops; None keeps it.
      crops: per image, 1, 5 or 10.
      corruption_names: of ImageNet-C.
      severities: of ImageNet-C.
      frost_dir: photographs for generated frost.
      seed: of corruptions and of the bootstrap.
    """

    data_dir: str | None = None
    batch_size: int = 256
    num_workers: int = 0
    image_size: int | None = None
    crop_ratio: float | None = None
    crops: int = 1
    corruption_names: tuple[str, ...] = corruptions.BENCHMARK
    severities: tuple[int, ...] = corruptions.SEVERITIES
    frost_dir: str | None = None
    seed: int = 0


class Protocol(NamedTuple):
    """How the images of a benchmark are scored with one set of weights.

    Attributes:
      benchmark: what is evaluated.
      model: the weights.
      transform: the crops.
      row: name of the row in the table.
    """

    benchmark: benchmarks.Benchmark
    model: restore.Restored
    transform: resampling.CropTransform
    row: str


class Found(NamedTuple):
    """A part of a benchmark and its record."""

    part: benchmark_parts.Part
    record: records.Record


def make_protocol(
    benchmark: benchmarks.Benchmark,
    model: restore.Restored,
    options: Options,
    *,
    method: str = OWN,
) -> Protocol:
    """Settles how images become pixels.

    Args:
      benchmark: what is evaluated.
      model: the weights.
      options: of the user.
      method: of resampling, or "own" for the model's.

    Raises:
      ValueError: when an option does not fit the model.
    """
    own = model.preprocessing
    size = options.image_size or own.size
    if model.fixed_size and size != own.size:
        raise ValueError(
            f"{model.model} takes images of {own.size} px only; leave out --image_size."
        )
    ratio = _CROP_RATIOS.get(benchmark.crop, own.crop_ratio)
    if options.crop_ratio and benchmark.crop != "stored":
        ratio = options.crop_ratio
    transform = resampling.CropTransform(
        size,
        channels=own.channels,
        method=own.interpolation if method == OWN else method,
        crop_ratio=ratio,
        crops=options.crops,
    )
    row = model.row if method == OWN else f"{model.row} {method}"
    return Protocol(benchmark, model, transform, row)


def evaluate_benchmark(
    protocol: Protocol,
    predictor: prediction.Predictor,
    *,
    options: Options,
    folder: pathlib.Path,
    mesh: jax.sharding.Mesh,
) -> list[Found]:
    """Evaluates all parts of one benchmark, or reads them back.

    Args:
      protocol: the benchmark, the weights and the crops.
      predictor: of these weights.
      options: of the user.
      folder: where records are kept.
      mesh: of all devices.

    Returns:
      The parts with their records; nothing on hosts but the first.

    Raises:
      MissingData: when images are not there.
      ValueError: when an image or the model does not fit.
    """
    benchmark = protocol.benchmark
    parts = benchmark_parts.find_parts(
        benchmark,
        data_dir=options.data_dir,
        # Training splits a folder with seed 0; its held-out part must be the same.
        seed=options.seed if benchmark.of_imagenet else 0,
        names=options.corruption_names,
        severities=options.severities,
        frost_dir=options.frost_dir,
    )
    meter = meter_lib.Meter(f"{benchmark.name} {protocol.row}", len(parts))
    is_writer = jax.process_index() == 0
    found = []
    for part in parts:
        source = _open(part, benchmark)
        fingerprint = _fingerprint(protocol, part, source)
        path = _record_path(folder, protocol, part)
        record = None
        if is_writer:
            record = records.read_record(path, fingerprint=fingerprint)
        meter.start(part.name, len(source), known=record is not None)
        if not prediction.agree(record is not None):
            record = _predict(protocol, source, predictor, options, mesh, meter)
            if is_writer:
                records.write_record(path, record, fingerprint=fingerprint)
        if is_writer:
            found.append(Found(part, record))
    meter.finish()
    return found


def results(
    protocol: Protocol,
    found: Sequence[Found],
    *,
    seed: int,
    clean_error: float | None = None,
) -> list[dict[str, Any]]:
    """The figures of each view as evaluation.json holds them.

    Args:
      protocol: of the benchmark.
      found: from `evaluate_benchmark`, at least one.
      seed: of the bootstrap.
      clean_error: on ImageNet's validation set, for the relative mCE.
    """
    benchmark, first = protocol.benchmark, found[0].record
    same = {
        "benchmark": benchmark.name,
        "weights": protocol.row,
        "digest": protocol.model.digest,
        "protocol": describe(protocol, found),
    }
    many = first.num_classes
    if not benchmarks.is_corrupted(benchmark):
        return [
            {**same, "view": v, **summary.summarize(s, num_classes=many, seed=seed)}
            for v, s in first.views.items()
        ]
    facts = corruptions.imagenet_c_facts()
    view = benchmark.views[0].name
    scores = {}
    for part, record in found:
        name, _, severity = part.name.partition("/")
        scores[name, int(severity)] = record.views[view]
    figures = summary.summarize_corrupted(
        scores,
        num_classes=many,
        baseline=facts["alexnet_error"],
        baseline_clean_error=facts["alexnet_clean_error"],
        clean_error=clean_error,
        seed=seed,
    )
    return [{**same, "view": view, **figures}]


def describe(protocol: Protocol, found: Sequence[Found]) -> str:
    """The protocol in words: all that makes a figure comparable, or not."""
    benchmark, count = protocol.benchmark, len(found[0].record.label)
    words = [f"{benchmark.title} ({benchmark.paper})" if benchmark.paper else ""]
    words += dict.fromkeys(part.origin for part, _ in found)
    words.append(protocol.transform.describe())
    words += dict.fromkeys(part.note for part, _ in found)
    words.append(found[0].record.note)
    if benchmark.images and count != benchmark.images:
        words.append(f"PARTIAL: {count:,} of {benchmark.images:,} images")
    return "; ".join(filter(None, words))


def _open(
    part: benchmark_parts.Part, benchmark: benchmarks.Benchmark
) -> sources.Source:
    try:
        return part.open()
    except (OSError, ValueError) as error:
        where = f"{benchmark.name} {part.name}".rstrip()
        raise benchmark_parts.MissingData(f"{where}: {error}") from None


def _predict(
    protocol: Protocol,
    source: sources.Source,
    predictor: prediction.Predictor,
    options: Options,
    mesh: jax.sharding.Mesh,
    meter: meter_lib.Meter,
) -> records.Record:
    """Scores every image of a source once."""
    model = protocol.model
    score = _Scorer(protocol, source, options.data_dir)
    collector = records.Collector(len(source))
    batches = loader.eval_batches(
        source,
        protocol.transform,
        batch_size=model.batch_size or sharding.round_up(options.batch_size, mesh),
        shard=reader.Shard(jax.process_index(), jax.process_count()),
        num_workers=options.num_workers,
    )
    with batches:
        for batch in batches:
            rows = predictor(batch)
            kept = {name: values[rows["mask"]] for name, values in rows.items()}
            collector.add(kept["index"], kept["label"], score(kept))
            meter.add(len(kept["index"]))
    classes = score.classes(kept["logits"].shape[1])
    return collector.finish(
        num_classes=int((classes.columns >= 0).sum()), note=classes.note
    )


class _Scorer:
    """Scores batches of logits under the views of a benchmark."""

    def __init__(
        self, protocol: Protocol, source: sources.Source, data_dir: str | None
    ) -> None:
        benchmark = protocol.benchmark
        self._views = {
            view.name: imagenet_labels.subset(view.subset) if view.subset else None
            for view in benchmark.views
        }
        self._sets = None
        if benchmark.views[0].real:
            self._sets = benchmark_parts.load_label_sets(source, data_dir)
        self.classes = functools.cache(
            lambda num_logits: class_map.match_classes(
                source.class_names,
                protocol.model.class_names,
                num_logits=num_logits,
                of_imagenet=benchmark.of_imagenet,
            )
        )

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, label_sets.Scores]:
        logits, sets = rows["logits"], self._sets
        classes = self.classes(logits.shape[1])
        return label_sets.score_views(
            label_sets.place_classes(
                logits, classes.columns, num_classes=classes.num_classes
            ),
            classes.labels[rows["label"]],
            views=self._views,
            label_sets=None if sets is None else [sets[i] for i in rows["index"]],
        )


def _fingerprint(
    protocol: Protocol, part: benchmark_parts.Part, source: sources.Source
) -> str:
    """Of all that decides a record: weights, images and how they are scored."""
    content = {
        "weights": protocol.model.digest,
        "transform": repr(protocol.transform),
        "benchmark": protocol.benchmark._asdict(),
        "part": [part.name, part.origin, part.note],
        "images": len(source),
        "ends": [source.describe(0), source.describe(len(source) - 1)],
    }
    return hashlib.sha256(digest.canonical_json(content).encode()).hexdigest()


def _record_path(
    folder: pathlib.Path, protocol: Protocol, part: benchmark_parts.Part
) -> pathlib.Path:
    row, benchmark, name = (
        "".join(c if c.isalnum() or c in "._=-" else "_" for c in text)
        for text in (protocol.row, protocol.benchmark.name, part.name or "all")
    )
    return folder / "records" / row / benchmark / f"{name}.npz"
