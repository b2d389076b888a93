"""MultiBranchConv against loops over Eq. (1), trained and fused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import apply, init
from reference import reparam as loops

from lvb.layers import multi_branch_conv
from lvb.layers.multi_branch_conv import Branch

# Every use in the families: fields, channels in, and the groups of the branches.
CASES = {
    "multi_group_1x1": (
        dict(features=16, branches=tuple(Branch(1, g) for g in (1, 2, 2, 4))),
        8,
    ),
    "grouped_main": (
        dict(features=8, branches=(Branch(3, 2), Branch(1, 4), Branch(1, 2))),
        8,
    ),
    "depthwise": (
        dict(features=6, branches=(Branch(5, 6), Branch(1, 6)), identity_norm=True),
        6,
    ),
    "depthwise_shortcut": (
        dict(
            features=6,
            branches=(Branch(3, 6), Branch(1, 6)),
            identity_norm=True,
            shortcut=True,
        ),
        6,
    ),
    "dense_shortcut": (dict(features=4, branches=(Branch(3, 1),), shortcut=True), 4),
    "stem": (
        dict(
            features=4,
            branches=(Branch(3, 1), Branch((3, 1), 1), Branch((1, 3), 1)),
            strides=2,
        ),
        3,
    ),
    "stem_depthwise": (
        dict(
            features=4,
            branches=(Branch(3, 4), Branch((3, 1), 4), Branch((1, 3), 4)),
            strides=2,
        ),
        4,
    ),
}
SIZES = [(6, 5), (7, 8)]


def random_variables(module, x):
    """Variables of the module's shapes, none at its initial value."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init, module, train=False), x)

    def draw(path, leaf):
        if path[-1].key == "var":
            return jnp.asarray(rng.uniform(0.5, 2.0, leaf.shape))
        return jnp.asarray(rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.mark.parametrize("form", ["reference", "shift"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_equals_loops_and_its_fused_form(case, size, form):
    fields, channels = CASES[case]
    fields = fields | dict(dtype=jnp.float64, param_dtype=jnp.float64, op_form=form)
    x = np.random.default_rng(1).normal(size=(2, *size, channels))
    with jax.enable_x64(True):
        module = multi_branch_conv.MultiBranchConv(**fields)
        variables = random_variables(module, x)
        y = np.asarray(apply(module, variables, x, train=False))
        deployed = multi_branch_conv.MultiBranchConv(**fields, deploy=True)
        fused = module.fuse(variables)
        y_fused = np.asarray(apply(deployed, fused, x, train=False))
    expected = loops.multi_branch_loops(
        x,
        variables,
        groups=tuple(branch.groups for branch in fields["branches"]),
        strides=fields.get("strides", 1),
        shortcut=fields.get("shortcut", False),
    )
    # Float64 sums of at most 72 products of order 1, in another order.
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y_fused, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_fused_tree_is_that_of_one_convolution(case):
    fields, channels = CASES[case]
    x = np.zeros((1, 6, 6, channels), np.float32)
    module = multi_branch_conv.MultiBranchConv(**fields)
    fused = module.fuse(random_variables(module, x))
    deployed = multi_branch_conv.MultiBranchConv(**fields, deploy=True)
    wanted = init(deployed, x, train=False)
    assert jax.tree.map(np.shape, fused) == jax.tree.map(np.shape, wanted)
    assert set(fused["params"]) == {"conv"}
    assert set(fused["params"]["conv"]) == {"kernel", "bias"}


def test_names_are_public():
    fields, channels = CASES["depthwise_shortcut"]
    module = multi_branch_conv.MultiBranchConv(**fields)
    variables = random_variables(module, np.zeros((1, 4, 4, channels), np.float32))
    assert set(variables["params"]) == {"branch0", "branch1", "identity"}
    assert set(variables["params"]["branch0"]) == {"conv", "norm"}
    assert variables["params"]["branch0"]["conv"]["kernel"].shape == (3, 3, 1, 6)


def test_training_sums_batch_normalised_branches():
    # Each branch has zero mean over the batch: without a shortcut so has the sum.
    fields, channels = CASES["multi_group_1x1"]
    x = np.random.default_rng(2).normal(size=(4, 5, 5, channels)).astype(np.float32)
    module = multi_branch_conv.MultiBranchConv(**fields)
    variables = init(module, x, train=False)
    y, updates = apply(module, variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0.0, atol=1e-6)
    assert len(jax.tree.leaves(updates)) == 2 * 4
    for leaf in jax.tree.leaves(updates):
        assert np.abs(np.asarray(leaf)).max() > 0


def test_every_branch_trains():
    fields, channels = CASES["depthwise_shortcut"]
    x = np.random.default_rng(3).normal(size=(4, 5, 5, channels)).astype(np.float32)
    module = multi_branch_conv.MultiBranchConv(**fields)
    variables = init(module, x, train=False)

    def loss(params):
        y, _ = module.apply(
            variables | {"params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y) * x)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        # The batch norm behind a depthwise 1x1 undoes its factor, epsilon aside.
        if "branch1" in str(path) and "kernel" in str(path):
            continue
        assert np.abs(leaf).max() > 1e-3, path


def test_bfloat16_branches_add_up_in_float32():
    # Branches +256, +1, -256 at inference; bfloat16 sums would lose the 1.
    module = multi_branch_conv.MultiBranchConv(
        1, branches=(Branch(1, 1),) * 3, dtype=jnp.bfloat16
    )
    x = jnp.ones((1, 1, 1, 1))
    variables = init(module, x, train=False)
    for index, value in enumerate((256.0, 1.0, -256.0)):
        branch = variables["params"][f"branch{index}"]
        branch["conv"]["kernel"] = jnp.zeros((1, 1, 1, 1))
        branch["norm"]["bias"] = jnp.full((1,), value)
    y = apply(module, variables, x, train=False)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1.0)


@pytest.mark.parametrize("field", ["identity_norm", "shortcut"])
@pytest.mark.parametrize("change", [dict(strides=2), dict(features=8)])
def test_refuses_an_identity_that_changes_shape(field, change):
    fields = dict(features=4, branches=(Branch(3, 1),)) | {field: True} | change
    module = multi_branch_conv.MultiBranchConv(**fields)
    with pytest.raises(ValueError, match="identity branch needs strides=1"):
        init(module, jnp.ones((1, 4, 4, 4)), train=False)


def test_refuses_groups_that_do_not_divide():
    module = multi_branch_conv.MultiBranchConv(6, branches=(Branch(1, 1), Branch(1, 4)))
    with pytest.raises(ValueError, match="groups=4"):
        init(module, jnp.ones((1, 4, 4, 8)), train=False)
