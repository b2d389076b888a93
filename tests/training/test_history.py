"""The evaluations so far."""

from lvb.training.history import History, Score


def test_the_first_of_two_equal_ones_stays_the_best():
    history = History().add(2, 0.5).add(4, 0.7).add(6, 0.7).add(8, 0.6)
    assert history.best == Score(4, 0.7)
    assert history.last == Score(8, 0.6)
    assert history.is_best(4)
    assert not history.is_best(6)


def test_before_the_first_there_is_none():
    history = History()
    assert history.best_step is None
    assert not history.evaluated(0)
    assert not history.is_best(0)


def test_notes_bring_it_back():
    history = History().add(2, 0.5).add(4, 0.25)
    assert History.from_notes(history.to_notes()) == history
    assert History.from_notes({}) == History()


def test_it_catches_up_with_later_lines_only():
    lines = [
        {"step": 2, "val/top1": 0.9},  # Known already, as the last.
        {"step": 3, "train/loss": 1.0},
        {"step": 4, "val/top1": 0.6},
        {"step": 5, "val/top1": None},  # A metric that was not finite.
        {"step": 6, "val/top1": 0.8},  # After the checkpoint.
    ]
    history = History().add(2, 0.5).catch_up(lines, metric="val/top1", until=5)
    assert history == History(last=Score(4, 0.6), best=Score(4, 0.6))
    assert history.evaluated(4)
