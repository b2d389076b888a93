"""The counts of FMViT's tables: parameters and multiply-adds, and what choices cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import fmvit as costs
from sizes import slow_but

from lvb.analysis import flops
from lvb.heads import classifier
from lvb.models import fmvit
from lvb.tasks import classification


def build(variant, **options):
    """The backbone of a column of Table 1, of the operators that trace fastest."""
    fields = fmvit.VARIANTS[variant]._asdict() | {"op_form": "reference"}
    return fmvit.FMViT(**(fields | options))


def classify(backbone):
    """The classifier on a backbone, with the backbone's settings."""
    head = classifier.ClassifierHead(
        1000, norm="batch_before_pool", **backbone.inherited
    )
    return classification.ImageClassifier(backbone, head)


@functools.cache
def shapes_of(model):
    """Shapes of the variables, nothing computed."""
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), images
    )


def count(tree):
    """Numbers in a tree of shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def macs_of(model, height, width):
    """Multiply-adds of one image, attention products included."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return flops.count_macs(
        lambda v, x: model.apply(v, x, train=False), shapes_of(model), images
    )


# Fused and training parameters; fused ones of stem, stages 1 to 4 and classifier.
PARAMS = {
    "T": (2040504, 4019496, (2272, 23136, 121504, 429648, 1142944, 321000)),
    "S": (6508248, 13534504, (4176, 43920, 303408, 1142944, 4372800, 641000)),
    "M": (12945512, 27468776, (6592, 197088, 434528, 2745760, 8600544, 961000)),
    "B": (24257480, 52210664, (6592, 292512, 1564256, 7114560, 13998560, 1281000)),
    "L": (35153672, 76202216, (6592, 578784, 1564256, 17724480, 13998560, 1281000)),
}
# Millions of multiply-adds at 224 x 224, of the attention products, and without at 512.
MACS = {
    "T": (318.84, 89.43, 1664.43),
    "S": (832.23, 134.61, 4345.25),
    "M": (1942.04, 184.40, 10142.10),
    "B": (4238.57, 376.78, 22138.98),
    "L": (7198.14, 465.29, 37601.22),
}
# Table 2: parameters in M, FLOPs in G.
TABLE2 = {"T": (2.0, 0.3), "S": (6.4, 0.8), "M": (12.8, 2.0), "B": (24.3, 4.2)}
TABLE2["L"] = (35.3, 7.1)


# The fast counts of the smallest network are those of test_counts.py.
@pytest.mark.slow
@pytest.mark.parametrize("variant", fmvit.VARIANTS)
def test_parameters(variant):
    fused, training, parts = PARAMS[variant]
    variables = shapes_of(classify(build(variant, deploy=True)))
    assert set(variables) == {"params"}
    backbone, head = variables["params"]["backbone"], variables["params"]["head"]
    assert set(backbone) == {"stem", "stage1", "stage2", "stage3", "stage4"}
    names = ("stem", "stage1", "stage2", "stage3", "stage4")
    assert (*(count(backbone[name]) for name in names), count(head)) == parts
    assert count(variables["params"]) == fused
    assert count(shapes_of(classify(build(variant)))["params"]) == training
    assert abs(fused / 1e6 / TABLE2[variant][0] - 1) < 0.021


@pytest.mark.parametrize("variant", slow_but(1, fmvit.VARIANTS))
def test_multiply_adds(variant):
    at_224, attention, at_512 = MACS[variant]
    model = classify(build(variant, deploy=True))
    products = model.backbone.unpublished_macs((224, 224))
    assert round(products / 1e6, 2) == attention
    assert round((macs_of(model, 224, 224) - products) / 1e6, 2) == at_224
    products = model.backbone.unpublished_macs((512, 512))
    assert round((macs_of(model, 512, 512) - products) / 1e6, 2) == at_512
    assert abs(at_224 / 1e3 / TABLE2[variant][1] - 1) < 0.064


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "giga"), [("B", 90.80), ("L", 154.22)])
def test_multiply_adds_of_table_3(variant, giga):
    # With the 179 G of neck and heads: 269.9 and 333.0 of Table 3.
    backbone = build(variant, deploy=True)
    total = macs_of(backbone, 800, 1344) - backbone.unpublished_macs((800, 1344))
    assert abs(total / 1e9 - giga) < 0.01


def test_unpublished_macs_are_the_dot_products_of_the_backbone():
    # Odd maps and pooled keys; all else in a backbone is a convolution.
    backbone = build("T", deploy=True, sr_ratio=(4, 2, 1))
    images = jax.ShapeDtypeStruct((1, 232, 260, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: backbone.apply(v, x, train=False))(
        shapes_of(backbone), images
    )
    products = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    total = 0
    for product in products:
        (contracted, _), _ = product.params["dimension_numbers"]
        lengths = [product.invars[0].aval.shape[axis] for axis in contracted]
        total += product.outvars[0].aval.size * int(np.prod(lengths))
    assert len(products) == 6
    assert total == backbone.unpublished_macs((232, 260))


def equations(jaxpr):
    """All equations of a jaxpr and of those it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "groups", "millions"),
    [
        ("B", (2, 2, 4), 71.39),
        ("L", (2, 2, 4), 95.38),
        ("B", (2, 4, 8, 16), 64.56),
        ("B", (2, 4), 60.29),
    ],
)
def test_training_parameters_of_table_3(variant, groups, millions):
    # Published: 72.1 and 94.9 M, with a neck and heads of 20,462,320.
    backbone = count(shapes_of(build(variant, groups=groups))["params"])
    assert round((backbone + 20462320) / 1e6, 2) == millions


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [dict(groups=(2, 4, 8, 16)), dict(dw_branches=()), dict(stem_asym_on_dw=False)],
)
def test_training_branches_cost_nothing_when_fused(options):
    deployed = classify(build("T", deploy=True, **options))
    assert count(shapes_of(deployed)) == PARAMS["T"][0]
    training = classify(build("T", **options))
    assert count(shapes_of(training)["params"]) != PARAMS["T"][1]


# FMViT-T0 of Table 5: fields over those of T, parameters, multiply-adds.
T0 = {
    "r1": (
        dict(attention="mhsa", channel_mixer="mlp", mix_frequencies=False),
        2255880,
        388309056,
    ),
    "r2": (dict(channel_mixer="mlp", mix_frequencies=False), 2107400, 365428800),
    "r3": (dict(mix_frequencies=False), 2107400, 365428800),
    "r4": ({}, 2473912, 403023168),
}


@pytest.mark.parametrize("row", slow_but(["r4"], T0))
def test_table_5(row):
    options, params, macs = T0[row]
    backbone = build("T", depths=(3, 1, 2, 1), deploy=True)
    model = classify(backbone.clone(**options))
    assert count(shapes_of(model)) == params
    products = model.backbone.unpublished_macs((224, 224))
    assert macs_of(model, 224, 224) - products == macs


# Every field that changes a cost: its setting, and the published figure's distance in
# percent (parameters, multiply-adds) for T, S, M, B, L.
KNOBS = {
    "kernels_3_3": dict(mlp_kernel=3),
    "kernels_3_5": dict(mlp_kernel=5),
    "kernels_7_5": dict(token_kernel=7, mlp_kernel=5),
    "attn_out_proj": dict(attn_out_proj=False),
    "stage_pe_always": dict(stage_pe_always=False),
    "fm_x_from": dict(fm_x_from="input"),
    "block_pe_to_stage_width": dict(block_pe_to_stage_width=True),
    "first_cfb_at_stem_width": dict(first_cfb_at_stem_width=True),
}
DISTANCES = {
    "kernels_3_3": "-5.2,-11.4/-2.4,-6.6/-1.9,-11.0/-2.9,-5.7/-3.5,-5.6",
    "kernels_3_5": "-2.3,-4.4/-0.8,-2.4/-0.7,-7.8/-1.8,-3.0/-2.3,-2.8",
    "kernels_7_5": "+0.2,+3.0/+0.6,+1.9/+0.3,-4.2/-0.9,-0.2/-1.2,+0.2",
    "attn_out_proj": "-0.9,+3.5/-1.3,+1.3/-1.8,-5.2/-3.4,-2.2/-3.9,-1.7",
    "stage_pe_always": "+0.4,+5.2/-0.4,+2.5/-0.9,-4.1/-1.6,-0.0/-1.4,+0.8",
    "fm_x_from": "+1.8,+6.0/+1.5,+3.8/+1.0,-3.1/-0.4,+0.7/-0.5,+1.3",
    "block_pe_to_stage_width": "+2.0,+6.3/+1.7,+4.0/+1.1,-2.9/+0.2,+1.3/+0.6,+2.4",
    "first_cfb_at_stem_width": "+2.0,+6.3/+1.7,+4.0/+0.9,-6.6/-0.3,-0.9/-0.5,+0.3",
    "table1_literal": "-2.3,-4.4/-0.8,-2.4/+2.2,+1.4/-1.8,-3.0/+1.4,+3.0",
    "best_fit": "+0.2,+3.0/+0.6,+1.9/+0.5,-0.7/-0.6,-1.6/-0.2,+0.2",
    "pe_fit": "-0.8,+14.6/+0.6,+7.5/+1.1,+1.0/+1.0,+2.0/-0.2,+1.0",
}


def knob_fields(knob, variant):
    """Fields of a variant under a knob or a preset."""
    fields = fmvit.VARIANTS[variant]._asdict()
    return fields | (KNOBS.get(knob) or fmvit.PRESETS[knob][variant])


@pytest.mark.parametrize("knob", DISTANCES)
def test_cost_of_a_choice_against_table_2(knob):
    distances = []
    for variant, published in TABLE2.items():
        layout = costs.Layout(**knob_fields(knob, variant))
        cost = costs.network_cost(layout, image_size=224)
        ratios = (cost.params / 1e6 / published[0], cost.macs / 1e9 / published[1])
        distances.append(",".join(f"{100 * ratio - 100:+.1f}" for ratio in ratios))
    assert "/".join(distances) == DISTANCES[knob]


def assert_cost_is_arithmetic(fields):
    model = classify(fmvit.FMViT(**fields, deploy=True, op_form="reference"))
    cost = costs.network_cost(costs.Layout(**fields), image_size=224)
    products = model.backbone.unpublished_macs((224, 224))
    assert count(shapes_of(model)) == cost.params
    assert macs_of(model, 224, 224) - products == cost.macs


@pytest.mark.parametrize("knob", slow_but(["best_fit"], DISTANCES))
def test_built_cost_equals_arithmetic(knob):
    assert_cost_is_arithmetic(knob_fields(knob, "T"))


# The presets, whose fields are each size's own.
@pytest.mark.slow
@pytest.mark.parametrize("variant", "SMBL")
@pytest.mark.parametrize("knob", fmvit.PRESETS)
def test_built_cost_equals_arithmetic_all_sizes(knob, variant):
    assert_cost_is_arithmetic(knob_fields(knob, variant))


@pytest.mark.parametrize("variant", fmvit.VARIANTS)
def test_widths_of_table_1(variant):
    row = fmvit.VARIANTS[variant]
    backbone = build(variant)
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.dims[1:] == tuple(5 * width for width in row.frequency_dims)
    # Each stage's embedding keeps the width of the stage before.
    assert row.embed_dims == backbone.dims[:3]
    assert all(width % 32 == 0 for width in row.attention_dims)
