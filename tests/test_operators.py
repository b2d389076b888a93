"""The cases of the operator table: read off the networks, equal in all forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sizes import slow_but

from lvb import operators
from lvb.analysis import memory_forms, operator_forms
from lvb.ops import depthwise


@pytest.mark.parametrize("name", ["lsnet_t", "fmvit_t"])
def test_convolutions_are_those_of_the_network(name):
    uses = operators.convolutions(name, batch_size=2, image_size=224)
    assert len(uses) == len(set(uses)) > 3
    for use in uses:
        assert use.shape[0] == 2
        assert use.kernel[2] * use.groups == use.shape[-1]
    if name == "lsnet_t":  # The large kernels of stages 2 and 3, on half the channels.
        large = {use.shape for use in uses if use.kernel[0] == 7}
        assert large == {(2, 14, 14, 64), (2, 7, 7, 128)}


def test_aggregations_follow_the_size_table():
    found = operators.aggregations(["lsnet_t", "fvnet_n"], 1, 224)
    assert found == [((1, 14, 14, 128), 16), ((1, 7, 7, 256), 32)]
    assert ((1, 28, 28, 128), 16) in operators.aggregations(["lsnet_b"], 1, 224)


def test_cases_follow_the_selection():
    found = operators.cases(
        ["lsnet_t"], batch_sizes=[1], image_size=224, only=("aggregation", "memory")
    )
    found = list(found)
    assert {case.operator for case in found} == {"aggregation", "memory"}
    assert not any(case.gradient for case in found)  # Nobody trains on one image.


CASES = {
    "depthwise": lambda: operator_forms.convolution_case(
        operator_forms.Convolution((1, 5, 6, 4), (3, 3, 1, 4), 1, (1, 1), 4)
    ),
    "depthwise s2": lambda: operator_forms.convolution_case(
        operator_forms.Convolution((1, 6, 6, 4), (3, 3, 1, 4), 2, (1, 1), 4)
    ),
    "grouped": lambda: operator_forms.convolution_case(
        operator_forms.Convolution((1, 4, 4, 8), (1, 1, 2, 4), 1, (0, 0), 4)
    ),
    "pointwise": lambda: operator_forms.convolution_case(
        operator_forms.Convolution((1, 4, 4, 8), (1, 1, 8, 4), 1, (0, 0), 1)
    ),
    "stem": lambda: operator_forms.convolution_case(
        operator_forms.Convolution((1, 6, 6, 3), (3, 3, 3, 8), 2, (1, 1), 1)
    ),
    "aggregation": lambda: operator_forms.aggregation_case((1, 4, 4, 8), 2),
    "memory": lambda: memory_forms.memory_case((1, 3, 4, 8), grad_at="initial"),
}


@pytest.mark.parametrize(
    "name",
    slow_but([name for name in CASES if name not in ("memory", "depthwise s2")], CASES),
)
def test_all_forms_of_a_case_are_equal(name):
    case = CASES[name]()
    assert set(case.chosen) <= {*case.forward, *case.gradient}

    def pulled(form):
        @jax.jit
        def run(*arguments):
            y, pull = jax.vjp(form, *arguments)
            return y, pull(jnp.cos(y))

        return run(*case.arguments)

    found = {**case.forward, **case.gradient}
    assert len(found) > 1
    expected, *others = (pulled(form) for form in found.values())
    for other in others:
        # Sums of some hundred float32 products of order 1.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            expected,
            other,
        )


def test_chosen_gradient_is_the_one_the_operator_takes():
    case = CASES["depthwise"]()
    picked = depthwise.choose_gradient(
        (1, 5, 6, 4), (3, 3, 1, 4), strides=1, padding=(1, 1)
    )
    assert case.chosen[1] == f"shift, {picked}"


def test_chosen_over_best_pairs_the_rounds():
    seconds = {"a": [1.0, 10.0, 3.0], "b": [1.1, 11.0, 3.3]}
    found = operator_forms.compare(seconds, "b")
    assert (found["chosen"], found["best"]) == ("b", "a")
    assert found["chosen_over_best"] == pytest.approx(1.1)
    assert operator_forms.compare(seconds, "a")["chosen_over_best"] == 1.0


def test_report_counts_what_is_within_five_percent():
    rows = [
        {
            "operator": "depthwise",
            "shape": "1x2x2x4",
            "direction": "forward",
            **operator_forms.compare({"a": [1.0], "b": [b]}, "b"),
        }
        for b in (1.04, 1.06)
    ]
    machine = {
        "processor": "a CPU",
        "device": "cpu",
        "threads": 2,
        "versions": {"jax": "0"},
    }
    text = operators.report(
        {"rows": rows, "machine": machine, "commit": "unknown", "rounds": 1}
    )
    assert "within 5 % of the best in 1 of 2" in text
    assert text.count("1x2x2x4") == 1  # Only the one beyond 5 % is listed.


@pytest.mark.parametrize(
    ("backend", "strides", "chosen"),
    [("cpu", 2, "rows"), ("cpu", 1, "reference"), ("tpu", 2, "reference")],
)
def test_dense_strides_have_their_form_on_a_cpu(monkeypatch, backend, strides, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    use = operator_forms.Convolution(
        (1, 8, 8, 5), (3, 3, 5, 6), strides, (1, 1), groups=1
    )
    assert operator_forms.convolution_case(use).chosen == (chosen, chosen)
