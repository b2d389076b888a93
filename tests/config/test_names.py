"""Names of config leaves."""

import json

import pytest

from lvb.config import names, schema

OLD = {"seed": 0, "optimizer": {"lr": 0.1, "name": "adamw"}, "mean": (0.5,)}


def test_flatten_reaches_every_leaf():
    assert names.flatten(OLD) == {
        "seed": 0,
        "optimizer.lr": 0.1,
        "optimizer.name": "adamw",
        "mean": [0.5],
    }


def test_lines_are_sorted():
    assert names.lines(OLD) == [
        "mean = [0.5]",
        "optimizer.lr = 0.1",
        "optimizer.name = 'adamw'",
        "seed = 0",
    ]


def test_diff_tells_changes_additions_and_removals():
    new = {"seed": 1, "optimizer": {"lr": 0.1}, "mean": (0.5,), "extra": True}
    assert names.diff(OLD, new) == [
        "extra: absent -> True",
        "optimizer.name: 'adamw' -> absent",
        "seed: 0 -> 1",
    ]


def test_a_config_equals_its_own_json():
    plain = schema.classification().to_dict()
    assert names.diff(json.loads(json.dumps(plain)), plain) == []


def test_an_int_and_a_float_of_equal_value_differ():
    assert names.diff({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"]


def test_check_accepts_leaves():
    names.check("optimizer.lr", OLD)


def test_check_suggests_the_nearest_leaf():
    with pytest.raises(ValueError, match=r"did you mean 'optimizer\.lr'"):
        names.check("optimizer.lrr", OLD)


def test_check_refuses_a_whole_group():
    with pytest.raises(ValueError, match="is a group; set one of its leaves"):
        names.check("optimizer", OLD)


def test_one_line_fits_for_a_message():
    assert names.one_line("a\nb\x1b\udcff é") == "a\\nb\\x1b\\udcff é"
    assert names.one_line("ab" * 100, longest=10) == "ababa ... babab"
