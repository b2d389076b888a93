"""Learning rates of the papers' recipes, at the steps that matter."""

import math

import jax
import pytest

from lvb.training import schedule

EPOCH = 625  # steps of LSNet's released run: 1,281,024 draws / 2048
LSNET = dict(
    base_lr=4e-3,
    total_steps=300 * EPOCH,
    warmup_steps=5 * EPOCH,
    min_lr=1e-5,
    warmup_init_lr=1e-6,
    steps_per_epoch=EPOCH,
)


def lsnet_epoch_rate(t):
    """LSNet's schedule, whose argument is in epochs."""
    if t < 5:
        return 1e-6 + t * (4e-3 - 1e-6) / 5
    return 1e-5 + 0.5 * (4e-3 - 1e-5) * (1 + math.cos(math.pi * t / 300))


@pytest.mark.parametrize(
    ("epoch", "logged"),
    # The learning rates that the released training logs print.
    [(10, 0.003993), (50, 0.003753), (100, 0.003038), (200, 0.001044), (300, 1.0e-5)],
)
def test_lsnet_logged_rates(epoch, logged):
    rate = schedule.make_schedule(step_mode="epoch_lagged", **LSNET)
    # The e-th epoch, counted from 1, holds steps (e - 1) EPOCH to e EPOCH - 1.
    assert round(float(rate((epoch - 1) * EPOCH)), 6) == logged


def test_lsnet_lags_one_epoch_and_is_constant_within_it():
    rate = jax.jit(schedule.make_schedule(step_mode="epoch_lagged", **LSNET))
    for epoch in (0, 1, 2, 4, 5, 6, 7, 150, 299):
        # A rate of 1e-6 next to 4e-3 in float32: absolute, not relative.
        expected = pytest.approx(lsnet_epoch_rate(max(epoch - 1, 0)), abs=2e-9)
        for step in (
            epoch * EPOCH,
            epoch * EPOCH + EPOCH // 2,
            (epoch + 1) * EPOCH - 1,
        ):
            assert float(rate(step)) == expected


# Rates at step 0, in mid warm-up, at its end, half-way and at the end of the run.
RECIPES = {
    # LSNet and FVNet, stepped every step; the decay counts from step 0.
    "lsnet": (
        {k: v for k, v in LSNET.items() if k != "steps_per_epoch"},
        [1e-6, 1.99986016e-3, 3.9972658e-3, 2.005e-3, 1e-5],
    ),
    # ConvNeur: 300 epochs of 312 steps at batch 4096, 20 of warm-up; min 1e-6.
    "convneur": (
        dict(
            base_lr=4e-3,
            total_steps=300 * 312,
            warmup_steps=20 * 312,
            min_lr=1e-6,
            decay_from="warmup_end",
        ),
        [0.0, 0.002, 4e-3, 2.2243730e-03, 1e-6],
    ),
    # FMViT: 20 epochs of warm-up from 1e-6, min 1e-5.
    "fmvit": (
        dict(
            base_lr=2e-3,
            total_steps=300 * 625,
            warmup_steps=20 * 625,
            min_lr=1e-5,
            warmup_init_lr=1e-6,
        ),
        [1e-6, 0.0010005, 1.9782564e-3, 1.005e-3, 1e-5],
    ),
    # ADE20K of ConvNeur: 1,500 steps of warm-up, poly to 80k.
    "ade20k": (
        dict(
            kind="poly",
            base_lr=6e-5,
            total_steps=80_000,
            warmup_steps=1_500,
            decay_from="warmup_end",
            power=1.0,
        ),
        [0.0, 3e-5, 6e-5, 3.0573248e-5, 0.0],
    ),
    # COCO 1x: divided by ten at epochs 8 and 11 of 12, here of 1,000 steps.
    "coco": (
        dict(
            kind="multi_step",
            base_lr=0.02,
            total_steps=12_000,
            warmup_steps=500,
            milestones=(8_000, 11_000),
        ),
        [0.0, 0.01, 0.02, 0.02, 2e-4],
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    options, expected = RECIPES[name]
    rate = schedule.make_schedule(**options)
    total, warmup = options["total_steps"], options["warmup_steps"]
    steps = (0, warmup // 2, warmup, total // 2, total)
    # float32; a warm-up start of 1e-6 next to 4e-3 is good to 5e-10.
    near = pytest.approx(expected, rel=2e-6, abs=5e-10)
    assert [float(rate(step)) for step in steps] == near
    assert [float(jax.jit(rate)(step)) for step in steps] == near


def test_multi_step_falls_at_its_milestones():
    rate = schedule.make_schedule(**RECIPES["coco"][0])
    steps = (7_999, 8_000, 10_999, 11_000)
    assert [float(rate(s)) for s in steps] == pytest.approx([0.02, 2e-3, 2e-3, 2e-4])


def test_poly_has_its_power_and_its_floor():
    rate = schedule.make_schedule(
        "poly", base_lr=2e-4, total_steps=40_000, warmup_steps=0, min_lr=1e-6
    )
    expected = 1e-6 + (2e-4 - 1e-6) * 0.75**0.9  # power 0.9 by default
    assert float(rate(10_000)) == pytest.approx(expected, rel=1e-5)


def test_poly_ends_in_a_number_when_compiled():
    """A compiled quotient may exceed 1 at the last step; its power must not be nan."""
    for total in range(1000, 1012):
        rate = schedule.make_schedule(
            "poly", base_lr=2e-4, total_steps=total, warmup_steps=0
        )
        assert 0.0 <= float(jax.jit(rate)(total)) < 1e-9


def test_decay_origin_shifts_multi_step_not():
    both = [
        schedule.make_schedule(decay_from=origin, **RECIPES["coco"][0])
        for origin in ("start", "warmup_end")
    ]
    for step in (0, 499, 500, 7_999, 8_000, 11_000):
        assert float(both[0](step)) == pytest.approx(float(both[1](step)))


def test_no_warmup_starts_at_the_base_rate():
    rate = schedule.make_schedule(base_lr=1e-3, total_steps=10, warmup_steps=0)
    assert float(rate(0)) == pytest.approx(1e-3)
    assert float(rate(10)) == pytest.approx(0.0, abs=1e-10)
    assert float(rate(99)) == pytest.approx(0.0, abs=1e-10)  # stays there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="step"), "kind='step' is unknown; use one of cosine, poly"),
        (dict(step_mode="epoch"), "step_mode='epoch' is unknown"),
        (dict(decay_from="end"), "decay_from='end' is unknown"),
        (dict(base_lr=0.0), "base_lr=0.0 is not positive"),
        (dict(warmup_steps=10), "does not fit into total_steps=10"),
        (dict(warmup_steps=-1), "warmup_steps=-1 does not fit"),
        (dict(step_mode="epoch_lagged"), "pass the number of optimiser steps in one"),
        (dict(kind="multi_step", milestones=(5, 3)), "not increasing positive steps"),
    ],
)
def test_refuses(options, message):
    fitting = dict(base_lr=1e-3, total_steps=10, warmup_steps=2)
    with pytest.raises(ValueError, match=message):
        schedule.make_schedule(**{**fitting, **options})
