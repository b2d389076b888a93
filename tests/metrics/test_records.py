"""Records: each image once, in order, back from disk only when they belong."""

import numpy as np
import pytest

from lvb.metrics import label_sets, records


def scored(index):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 7))[index]
    labels = rng.integers(7, size=20)[index]
    views = label_sets.score_views(
        logits, labels, views={"all": None, "few": (0, 2, 5)}
    )
    return labels, views


def collected(batches, num_examples=20):
    collector = records.Collector(num_examples)
    for batch in batches:
        index = np.asarray(batch)
        collector.add(index, *scored(index))
    return collector.finish(num_classes=7, note="a note")


def assert_equal(one, other):
    np.testing.assert_array_equal(one.label, other.label)
    assert (one.num_classes, one.note) == (other.num_classes, other.note)
    assert list(one.views) == list(other.views)
    for name, scores in one.views.items():
        for a, b in zip(scores, other.views[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_of_batches_does_not_matter():
    whole = collected([range(20)])
    order = np.random.default_rng(1).permutation(20)
    assert_equal(whole, collected([order[:3], order[3:4], order[4:]]))
    labels, views = scored(np.arange(20))
    np.testing.assert_array_equal(whole.label, labels)
    np.testing.assert_array_equal(whole.views["few"].top1, views["few"].top1)


@pytest.mark.parametrize(
    "batches", [[range(19)], [range(20), [3]], [[*range(19), 18]], []]
)
def test_every_image_counts_once(batches):
    with pytest.raises(RuntimeError, match="of them different, where there are 20"):
        collected(batches)


def test_round_trip(tmp_path):
    path, record = tmp_path / "deep" / "all.npz", collected([range(20)])
    records.write_record(path, record, fingerprint="abc")
    assert_equal(records.read_record(path, fingerprint="abc"), record)
    assert [file.name for file in path.parent.iterdir()] == ["all.npz"]


def test_other_and_damaged_records_are_not_used(tmp_path):
    path = tmp_path / "all.npz"
    assert records.read_record(path, fingerprint="abc") is None
    records.write_record(path, collected([range(20)]), fingerprint="abc")
    assert records.read_record(path, fingerprint="abd") is None
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        assert records.read_record(path, fingerprint="abc") is None
