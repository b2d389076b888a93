"""Parameters and multiply-adds of every model and every published row."""

import functools

import pytest
from paper_tables import ABLATIONS, EXACT, LARGE_IMAGES, VARIANTS, within_rounding
from sizes import slow_but

import lvb
from lvb import benchmark

# The smallest of each family; the others are counted with the slow tests.
FAST = ("lsnet_t", "convneur_m1", "fvnet_n", "fmvit_t")
BY_MODEL = {row.model: row for row in VARIANTS}


@functools.cache
def count(name):
    return benchmark.count_row(BY_MODEL[name])


def test_every_model_has_a_row():
    assert sorted(row.model for row in VARIANTS) == lvb.list_models() == sorted(EXACT)


@pytest.mark.parametrize("name", slow_but(FAST, sorted(EXACT)))
def test_exact_counts(name):
    counted = count(name)
    found = counted["params"], counted["deploy_params"], counted["macs"]
    assert found == EXACT[name]


@pytest.mark.parametrize("name", slow_but(FAST, sorted(EXACT)))
def test_published_counts_agree_or_say_why_not(name):
    counted = count(name)
    agrees = counted["params_agree"] and counted["macs_agree"]
    assert agrees or BY_MODEL[name].reason
    # Whatever the reason, no figure of a variant is off by more than a tenth.
    assert abs(counted["params_error"]) < 0.05
    assert abs(counted["macs_error"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in LARGE_IMAGES + ABLATIONS if row.options is not None],
    ids=lambda row: f"{row.source}: {row.label}",
)
def test_other_rows_agree_or_say_why_not(row):
    counted = benchmark.count_row(row)
    assert (counted["params_agree"] and counted["macs_agree"]) or row.reason


def test_table_prints_reasons_for_what_disagrees_only():
    text = benchmark.counts_markdown([count("convneur_m1"), count("lsnet_t")])
    assert "ConvNeur Table 2, M1: the authors' counter also counts norms" in text
    assert "LSNet Table 1, T:" not in text
    words = " ".join(text.split())  # Columns are as wide as their widest cell.
    assert "| LSNet Table 1: T | lsnet_t | 224 | 11,409,832 |" in words


@pytest.mark.parametrize(
    ("value", "printed", "expected"),
    [
        (11.4098, "11.4", True),
        (11.45, "11.4", True),
        (11.451, "11.4", False),
        (0.3157, "0.3", True),
        (0.3157, "0.31", False),
        (1.2443, "1.3", False),
    ],
)
def test_rounding(value, printed, expected):
    assert within_rounding(value, printed) is expected
