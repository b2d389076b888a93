"""Rate multipliers as text."""

import pytest

from lvb.config import rates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("backbone=0.1", {"backbone": 0.1}),
        (
            " backbone = 0.1, /backbone/stem/=0 ,",
            {"backbone": 0.1, "backbone/stem": 0.0},
        ),
        ("head=2e1", {"head": 20.0}),
    ],
)
def test_text_becomes_multipliers(text, expected):
    assert rates.parse_rates(text) == expected


@pytest.mark.parametrize(
    "text", ["backbone", "backbone=", "backbone=fast", "=0.1", "head=-1", "head=nan"]
)
def test_what_is_no_rate_is_named(text):
    with pytest.raises(ValueError, match="write path=rate") as error:
        rates.parse_rates(f"backbone/stem=0,{text}")
    assert repr(text) in str(error.value)


def test_a_path_comes_once():
    with pytest.raises(ValueError, match="'head' twice"):
        rates.parse_rates("head=1,head/=2")
