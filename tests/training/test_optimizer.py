"""Clipping, decay masks, rate multipliers and the optimisers built of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import agc as reference

from lvb.training import optimizer

# The kinds of parameters that LSNet has, tiny.
SHAPES = {
    "conv/kernel": (3, 3, 4, 6),
    "depthwise/kernel": (3, 3, 1, 5),
    "pointwise_depthwise/kernel": (1, 1, 1, 5),  # the 1x1 branch of RepDW
    "dense/kernel": (7, 4),
    "dense/bias": (4,),
    "narrow/kernel": (1, 4),
    "norm/scale": (6,),
    "norm/bias": (6,),
    "attention/attention_biases": (4, 16),
    "temperature": (),
}


def tree(seed, *, spread=1.0):
    """A nested parameter tree; units differ widely in norm."""
    rng = np.random.default_rng(seed)
    nested = {}
    for path, shape in SHAPES.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        values = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape[-1:]))
        node[name] = jnp.asarray(values, jnp.float32)
    return nested


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {optimizer.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def constant(rate):
    return lambda step: jnp.float32(rate)


@pytest.fixture(scope="module")
def params():
    return tree(0)


class TestScaledLr:
    def test_is_linear(self):
        rate = optimizer.scaled_lr(1e-3, batch_size=2048, reference_batch_size=512)
        assert rate == 4e-3  # LSNet's released default and Table 10

    def test_refuses_empty_batches(self):
        with pytest.raises(ValueError, match="batch_size=0"):
            optimizer.scaled_lr(1e-3, batch_size=0, reference_batch_size=512)


class TestDecayMask:
    def test_vectors_and_named_parameters_are_exempt(self, params):
        mask = by_path(optimizer.decay_mask(params, ("attention_biases",)))
        assert {path for path, decayed in mask.items() if decayed} == {
            "conv/kernel",
            "depthwise/kernel",
            "pointwise_depthwise/kernel",
            "dense/kernel",
            "narrow/kernel",
        }

    def test_names_are_whole_path_components(self, params):
        everything = by_path(optimizer.decay_mask(params))
        assert everything["attention/attention_biases"]
        assert by_path(optimizer.decay_mask(params, ("biases", "att"))) == everything
        nested = by_path(optimizer.decay_mask(params, ("dense", "conv/kernel")))
        assert not nested["dense/kernel"]
        assert not nested["conv/kernel"]
        assert nested["depthwise/kernel"]

    def test_undecayed_names(self, params):
        assert optimizer.undecayed_names(params, ("attention_biases",)) == {
            "attention_biases": 1,
            "bias": 2,
            "scale": 1,
            "temperature": 1,
        }

    def test_reads_shapes_only(self, params):
        shapes = jax.eval_shape(lambda: params)
        assert optimizer.decay_mask(shapes) == optimizer.decay_mask(params)


class TestAdaptiveClip:
    def test_equals_the_reference(self, params):
        grads = jax.tree.map(lambda g: 0.02 * g, tree(1, spread=2.0))
        tx = optimizer.adaptive_clip(0.02)
        clipped, _ = jax.jit(tx.update)(grads, tx.init(params), params)
        theirs, raw = by_path(params), by_path(grads)
        num_clipped = num_kept = 0
        for path, ours in by_path(clipped).items():
            expected = reference.clip(
                raw[path],
                theirs[path],
                name=path.split("/")[-1],
                ratio=0.02,
                eps=1e-3,
            )
            # Norms of at most 36 numbers in float32.
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=0)
            num_kept += (ours == raw[path]).sum()
            num_clipped += (ours != raw[path]).sum()
        assert num_kept > 50
        assert num_clipped > 50

    def test_where_optax_differs(self, params):
        grads = tree(1, spread=2.0)
        ours, _ = optimizer.adaptive_clip(0.02).update(grads, None, params)
        theirs, _ = optax.adaptive_grad_clip(0.02).update(grads, None, params)
        theirs = by_path(theirs)
        differing = {
            path
            for path, leaf in by_path(ours).items()
            if not np.allclose(leaf, theirs[path], rtol=1e-4)
        }
        assert differing == {
            "attention/attention_biases",
            "pointwise_depthwise/kernel",
            "narrow/kernel",
        }

    def test_bias_tables_are_clipped_per_head(self, params):
        table = jnp.ones((4, 16))
        grad = jnp.ones((4, 16)).at[1].multiply(100.0)
        tx = optimizer.adaptive_clip(0.02)
        clipped, _ = tx.update(
            {"attention_biases": grad}, None, {"attention_biases": table}
        )
        norms = jnp.linalg.norm(clipped["attention_biases"], axis=1)
        np.testing.assert_allclose(norms, 0.02 * 4.0, rtol=1e-6)

    def test_zero_parameters_can_leave_zero(self):
        """LSNet starts the last scale of each block at 0; the floor is 0.02 * 1e-3."""
        scale = {"scale": jnp.zeros(16)}
        grads = {"scale": jnp.ones(16)}
        clipped, _ = optimizer.adaptive_clip(0.02).update(grads, None, scale)
        assert float(jnp.linalg.norm(clipped["scale"])) == pytest.approx(2e-5)

    def test_zero_gradients_stay_zero(self, params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        clipped, _ = optimizer.adaptive_clip(0.02).update(zeros, None, params)
        for leaf in jax.tree.leaves(clipped):
            np.testing.assert_array_equal(leaf, 0.0)

    def test_needs_params(self, params):
        with pytest.raises(ValueError, match="came without params"):
            optimizer.adaptive_clip(0.02).update(params, None)


def adamw_loops(params, grads, *, rates, decay, decayed, b1=0.9, b2=0.999, eps=1e-8):
    """AdamW, arXiv:1711.05101, Algorithm 2, in float64."""
    x, m, v = params.astype(np.float64), 0.0, 0.0
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        m = b1 * m + (1 - b1) * grad
        v = b2 * v + (1 - b2) * grad**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        x = x - rate * (step + decay * x * decayed)
    return x


def sgd_loops(params, grads, *, rates, decay, decayed, momentum):
    """PyTorch's SGD: decay joins the gradient, the rate comes after the momentum."""
    x, velocity = params.astype(np.float64), 0.0
    for grad, rate in zip(grads, rates, strict=True):
        velocity = momentum * velocity + grad + decay * x * decayed
        x = x - rate * velocity
    return x


def run(tx, params, grads):
    """Applies the gradients one after another."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


class TestMakeOptimizer:
    RATES = (0.01, 0.02, 0.005, 0.001)

    def schedule(self, step):
        return jnp.asarray(self.RATES, jnp.float32)[step]

    @pytest.mark.parametrize("name", ["adamw", "sgd"])
    def test_equals_loops(self, params, name):
        grads = [tree(seed) for seed in range(1, 5)]
        tx = optimizer.make_optimizer(
            name,
            schedule=self.schedule,
            params=params,
            weight_decay=0.3,
            momentum=0.8,
            no_decay=("attention_biases",),
        )
        ours = by_path(run(tx, params, grads)[0])
        mask = by_path(optimizer.decay_mask(params, ("attention_biases",)))
        series = [by_path(grad) for grad in grads]
        for path, start in by_path(params).items():
            options = dict(rates=self.RATES, decay=0.3, decayed=mask[path])
            loops = adamw_loops if name == "adamw" else sgd_loops
            if name == "sgd":
                options["momentum"] = 0.8
            expected = loops(start, [g[path] for g in series], **options)
            # Four updates in float32.
            np.testing.assert_allclose(ours[path], expected, rtol=5e-6, atol=1e-6)

    def test_clips_by_global_norm(self, params):
        tx = optimizer.make_optimizer(
            "sgd",
            schedule=constant(1.0),
            params=params,
            weight_decay=0.0,
            momentum=0.0,
            clip_mode="global_norm",
            clip=5.0,
        )
        updates, _ = tx.update(tree(1), tx.init(params), params)
        assert float(optax.tree.norm(updates)) == pytest.approx(5.0, rel=1e-5)

    def test_clips_adaptively_before_the_moments(self, params):
        tx = optimizer.make_optimizer(
            "sgd",
            schedule=constant(1.0),
            params=params,
            weight_decay=0.0,
            clip_mode="agc",
            clip=0.02,
        )
        updates, _ = tx.update(tree(1), tx.init(params), params)
        expected, _ = optimizer.adaptive_clip(0.02).update(tree(1), None, params)
        for ours, theirs in zip(
            *map(jax.tree.leaves, (updates, expected)), strict=True
        ):
            np.testing.assert_allclose(ours, -theirs, rtol=1e-6)

    def test_no_clipping_has_two_names(self, params):
        options = dict(schedule=constant(0.1), params=params, weight_decay=0.0)
        grads = tree(1)
        results = []
        for mode in (None, "none"):
            tx = optimizer.make_optimizer(clip_mode=mode, clip=0.0, **options)
            results.append(tx.update(grads, tx.init(params), params)[0])
        for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(name="lamb"), "'lamb' is unknown; use adamw or sgd"),
            (dict(clip_mode="norm", clip=1.0), "clip_mode='norm' is unknown"),
            (dict(clip_mode="agc"), "clip_mode='agc' came with clip=None"),
            (dict(clip_mode="agc", clip=0.0), "give a positive number"),
        ],
    )
    def test_refuses(self, params, options, message):
        fitting = dict(schedule=constant(1.0), params=params, weight_decay=0.0)
        with pytest.raises(ValueError, match=message):
            optimizer.make_optimizer(**{**fitting, **options})


class TestLayerRates:
    def make(self, params, layer_rates, **options):
        return optimizer.make_optimizer(
            "adamw",
            schedule=constant(0.01),
            params=params,
            weight_decay=0.1,
            layer_rates=layer_rates,
            **options,
        )

    def test_longest_prefix_wins(self, params):
        rates = by_path(
            optimizer.rate_tree(params, {"dense": 0.1, "dense/bias": 3.0, "conv/": 2.0})
        )
        assert rates["dense/kernel"] == 0.1
        assert rates["dense/bias"] == 3.0
        assert rates["conv/kernel"] == 2.0
        assert rates["depthwise/kernel"] == 1.0

    def test_multiplies_updates_and_decay(self, params):
        grads = tree(1)
        plain = self.make(params, None)
        scaled = self.make(params, {"dense": 10.0})
        before, _ = plain.update(grads, plain.init(params), params)
        after, _ = scaled.update(grads, scaled.init(params), params)
        before, after = by_path(before), by_path(after)
        for path, update in after.items():
            factor = 10.0 if path.startswith("dense/") else 1.0
            np.testing.assert_allclose(update, factor * before[path], rtol=1e-6)

    def test_zero_freezes_to_the_bit(self, params):
        tx = self.make(params, {"conv": 0.0, "norm/scale": 0.0})
        grads = [tree(seed) for seed in (1, 2)]
        after, state = run(tx, params, grads)
        before, after = by_path(params), by_path(after)
        frozen = {path for path in before if np.array_equal(before[path], after[path])}
        assert frozen == {"conv/kernel", "norm/scale"}
        # Neither first nor second moments are kept for what is frozen.
        sizes = [leaf.shape for leaf in jax.tree.leaves(state)]
        assert SHAPES["conv/kernel"] not in sizes
        assert sizes.count(SHAPES["dense/kernel"]) == 2

    def test_frozen_gradients_have_no_share_in_the_norm(self, params):
        options = dict(clip_mode="global_norm", clip=1.0)
        tx = optimizer.make_optimizer(
            "sgd",
            schedule=constant(1.0),
            params=params,
            weight_decay=0.0,
            momentum=0.0,
            layer_rates={"conv": 0.0},
            **options,
        )
        grads = tree(1)
        grads["conv"] = jax.tree.map(lambda g: 1e6 * g, grads["conv"])
        updates, _ = tx.update(grads, tx.init(params), params)
        assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-5)

    def test_works_with_adaptive_clipping(self, params):
        tx = self.make(params, {"conv": 0.0}, clip_mode="agc", clip=0.02)
        updates, _ = tx.update(tree(1), tx.init(params), params)
        assert not np.asarray(updates["conv"]["kernel"]).any()
        assert np.asarray(updates["dense"]["kernel"]).all()

    def test_refuses_unknown_prefixes_and_negative_rates(self, params):
        with pytest.raises(ValueError, match=r"begins with 'bakbone'; the top-level"):
            self.make(params, {"bakbone": 0.1})
        with pytest.raises(ValueError, match="begins with 'den'"):
            self.make(params, {"den": 0.1})
        with pytest.raises(ValueError, match="negative multiplier"):
            self.make(params, {"dense": -1.0})
