"""Parameters and multiply-adds of every model and every published row."""

import pytest
from paper_tables import ABLATIONS, EXACT, LARGE_IMAGES, VARIANTS, within_rounding

import lvb
from lvb import benchmark


@pytest.fixture(scope="module")
def counts():
    return {row.model: benchmark.count_row(row) for row in VARIANTS}


def test_every_model_has_a_row():
    assert sorted(row.model for row in VARIANTS) == lvb.list_models() == sorted(EXACT)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_exact_counts(name, counts):
    count, exact = counts[name], EXACT[name]
    assert (count["params"], count["deploy_params"], count["macs"]) == exact


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.model)
def test_published_counts_agree_or_say_why_not(row, counts):
    count = counts[row.model]
    assert (count["params_agree"] and count["macs_agree"]) or row.reason
    # Whatever the reason, no figure of a variant is off by more than a tenth.
    assert abs(count["params_error"]) < 0.05
    assert abs(count["macs_error"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in LARGE_IMAGES + ABLATIONS if row.options is not None],
    ids=lambda row: f"{row.source}: {row.label}",
)
def test_other_rows_agree_or_say_why_not(row):
    count = benchmark.count_row(row)
    assert (count["params_agree"] and count["macs_agree"]) or row.reason


def test_table_prints_reasons_for_what_disagrees_only(counts):
    text = benchmark.counts_markdown([counts["lsnet_b"], counts["lsnet_t"]])
    assert "LSNet Table 1, B: the released LSNet-B has 1.24 G" in text
    assert "LSNet Table 1, T:" not in text
    assert "| LSNet Table 1: T | lsnet_t | 224 | 11,409,832 |" in text


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
