"""Sweeps."""

import pytest

from lvb.config import hyper

SEEDS = hyper.sweep("config.seed", (0, 1))
RATES = hyper.sweep("config.optimizer.lr", (0.1, 0.2))


def test_product_varies_the_last_sweep_fastest():
    assert hyper.product([SEEDS, RATES]) == [
        {"config.seed": 0, "config.optimizer.lr": 0.1},
        {"config.seed": 0, "config.optimizer.lr": 0.2},
        {"config.seed": 1, "config.optimizer.lr": 0.1},
        {"config.seed": 1, "config.optimizer.lr": 0.2},
    ]


def test_zipit_pairs_and_repeats_single_runs():
    fixed = hyper.fixed("config.batch_size", 8)
    assert hyper.zipit([SEEDS, RATES, fixed]) == [
        {"config.seed": 0, "config.optimizer.lr": 0.1, "config.batch_size": 8},
        {"config.seed": 1, "config.optimizer.lr": 0.2, "config.batch_size": 8},
    ]


def test_chain_appends():
    assert hyper.chain([SEEDS, RATES]) == SEEDS + RATES


def test_nothing_to_sweep_is_one_run_without_overrides():
    assert hyper.product([]) == [{}]


def test_zipit_refuses_different_lengths():
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        hyper.zipit([SEEDS, hyper.sweep("config.batch_size", (1, 2, 3))])


def test_a_name_cannot_be_swept_twice():
    with pytest.raises(ValueError, match=r"'config\.seed' is swept twice"):
        hyper.product([SEEDS, SEEDS])
