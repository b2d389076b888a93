"""The official curves: as typed, as looked up and as shown."""

import itertools

import pytest

from lvb.analysis import reference_curves


@pytest.mark.parametrize("key", sorted(reference_curves.CURVES))
def test_a_curve_ends_after_300_epochs_and_rises_after_warmup(key):
    curve = reference_curves.CURVES[key]
    assert curve[-1].epoch == reference_curves.NUM_EPOCHS
    assert [p.epoch for p in curve] == sorted({p.epoch for p in curve})
    # A slip of the pen in a figure nearly always breaks the order.
    learnt = [p.top1 for p in curve if p.epoch >= 3]
    assert all(a < b for a, b in itertools.pairwise(learnt))
    assert all(p.top1 < 0.2 for p in curve if p.epoch <= 2)


def test_the_last_figures_are_those_of_the_logs():
    last = {key: curve[-1].top1 for key, curve in reference_curves.CURVES.items()}
    assert last == {
        ("lsnet_t", False): 74.84,
        ("lsnet_t", True): 76.04,
        ("lsnet_s", False): 77.70,
        ("lsnet_s", True): 78.99,
        ("lsnet_b", False): 80.32,
        ("lsnet_b", True): 81.57,
    }


def test_distilled_runs_are_ahead_of_plain_ones():
    # From epoch 6: before, the order of runs at the warm-up's rates says little.
    for model in ("lsnet_t", "lsnet_s", "lsnet_b"):
        star = dict(reference_curves.CURVES[model, True])
        for epoch, top1 in reference_curves.CURVES[model, False]:
            if epoch >= 6:
                assert star[epoch] > top1


@pytest.mark.parametrize(
    ("epoch", "words"),
    [
        (20, "official log 52.43"),
        (21, "official log 52.43 at epoch 20, 59.55 at epoch 50"),
        (49.5, "official log 52.43 at epoch 20, 59.55 at epoch 50"),
        (300, "official log 74.84"),
        (301, "official log 74.84 at epoch 300"),
        (0.5, "official log 0.08 at epoch 1"),
    ],
)
def test_words_at_an_epoch(epoch, words):
    assert reference_curves.on_track("lsnet_t", epoch) == words


def test_a_late_log_is_quoted_with_its_first_epoch():
    assert reference_curves.on_track("lsnet_b", 20) == (
        "official log 69.37 at epoch 100"
    )


def test_a_model_without_a_log_has_no_words():
    assert reference_curves.on_track("fvnet_t", 20) == ""
    assert reference_curves.neighbours("fvnet_t", 20) == ()
