"""Where a number that is not finite begins."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lvb.training import replay, state


class Scale(nn.Module):
    """x * factor, for factors that overflow."""

    factor: float

    @nn.compact
    def __call__(self, x):
        return x * self.factor


class Net(nn.Module):
    """Dense, then perhaps an overflow inside a module or between two."""

    inner: float = 1.0
    outer: float = 1.0

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="first")(x)
        x = Scale(self.inner, name="scale")(x)
        return nn.Dense(2, name="last")(x * self.outer).mean()


class Task:
    """As small as a task can be: the mean output is the loss."""

    def __init__(self, **factors):
        self.model = Net(**factors)

    def init(self, key, *, image_shape):
        return {"batch_stats": {}, **self.model.init(key, jnp.ones((1, *image_shape)))}

    def prepare(self, batch, *, key):
        return {"image": batch["image"] * 1.0}

    def loss(self, params, batch_stats, batch, *, rngs):
        loss = self.model.apply({"params": params}, batch["image"])
        return loss, (batch_stats, {})


BATCH = {"image": np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)}


def look(task, *, batch=BATCH, change=lambda params: params, **options):
    variables = {"batch_stats": {}, **task.init(jax.random.key(0), image_shape=(3,))}
    now = state.first_state(variables, tx=optax.sgd(0.1), keep_ema=False, window={})
    now = now.replace(params=change(now.params))
    found = replay.inspect_step(
        now, batch, task=task, seed_key=jax.random.key(0), **options
    )
    return found, now


def spoil(params):
    kernel = params["last"]["kernel"].at[0, 0].set(jnp.inf)
    return {**params, "last": {**params["last"], "kernel": kernel}}


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_the_first_bad_module_is_found(grad_accum):
    found, _ = look(Task(inner=float("inf")), grad_accum=grad_accum)
    assert (found.where, found.name) == ("module", "scale")
    assert found.record.shape == (8 // grad_accum, 3)
    assert int(found.statistics.infinite) == 24 // grad_accum
    words = replay.describe(found)
    assert "module scale is the first whose output is not finite" in words
    assert "its input was finite: 0 nan, 0 infinite" in words


def test_what_goes_wrong_between_modules_shows_in_the_next_input():
    found, _ = look(Task(outer=float("nan")))
    assert (found.where, found.name) == ("module", "last")
    assert "its input was not finite already" in replay.describe(found)


def test_spoilt_parameters_are_named():
    found, _ = look(Task(), change=spoil)
    assert (found.where, found.name) == ("parameters", "last/kernel")
    assert (
        "parameter last/kernel was not finite before the step: 0 nan, 1 infinite"
        in (replay.describe(found))
    )


def test_images_that_are_not_finite_are_told():
    image = BATCH["image"].copy()
    image[3, 1] = np.nan
    found, _ = look(Task(), batch={"image": image})
    assert found.where == "images"
    assert int(found.statistics.nan) == 1


def test_a_healthy_step_is_told_as_such():
    found, now = look(Task())
    assert found.where == "nothing"
    options = dict(task=Task(), seed_key=jax.random.key(0))
    assert replay.inspect_gradient(now, BATCH, **options).where == "nothing"


def test_a_gradient_that_is_not_finite_is_found():
    class Root(Task):
        def loss(self, params, batch_stats, batch, *, rngs):
            # Finite itself; its slope at 0 is not.
            return jnp.sqrt(jnp.abs(params["last"]["bias"][0])), (batch_stats, {})

    found, now = look(Root())
    assert found.where == "nothing"
    found = replay.inspect_gradient(now, BATCH, task=Root(), seed_key=jax.random.key(0))
    assert (found.where, found.name) == ("gradient", "last/bias")
    assert "the gradient of last/bias is not finite" in replay.describe(found)


def test_a_loss_that_no_module_made_is_told():
    class Log(Task):
        def loss(self, params, batch_stats, batch, *, rngs):
            loss, rest = super().loss(params, batch_stats, batch, rngs=rngs)
            return jnp.log(loss - loss), rest

    assert look(Log())[0].where == "loss"


def test_statistics_of_the_finite_part():
    values = {"a": jnp.array([1.0, -3.0, jnp.nan]), "b": jnp.array([jnp.inf, 2.0])}
    numbers = replay.statistics({**values, "labels": jnp.arange(99)})
    np.testing.assert_allclose(numbers, [1, 1, -3, 2, np.sqrt(14 / 3)], rtol=1e-6)
    assert replay.is_bad(numbers)
    for size in (3e38, 3e-38):
        numbers = replay.statistics(jnp.full(3, size))
        assert not replay.is_bad(numbers)
        np.testing.assert_allclose(numbers.rms, size, rtol=1e-6)
    assert not replay.is_bad(replay.statistics(()))
    assert not replay.is_bad(None)


def test_every_module_is_recorded_in_the_order_of_its_end():
    model = Net()
    variables = model.init(jax.random.key(0), BATCH["image"])
    _, records = replay.record_modules(model.apply, variables, BATCH["image"])
    assert [r.path for r in records] == ["first", "scale", "last", "Net"]
    assert records[0].shape == (8, 3)
    np.testing.assert_allclose(records[0].input.high, 1.0)


def test_rematerialised_networks_are_looked_at_without():
    backbone = types.SimpleNamespace(remat=False)
    plain = types.SimpleNamespace(model=types.SimpleNamespace(backbone=backbone))
    assert replay.without_remat(plain) is plain
