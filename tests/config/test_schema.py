"""The leaves of a config and their types."""

import pytest

from lvb.config import names, schema


def test_every_leaf_has_a_type_that_a_flag_can_read():
    leaves = names.flatten(schema.classification().to_dict())
    wrong = {k: v for k, v in leaves.items() if type(v) not in (bool, int, float, str)}
    assert all(isinstance(value, list) for value in wrong.values()), wrong


def test_an_unknown_leaf_cannot_be_set():
    config = schema.classification()
    with pytest.raises(KeyError, match="lr"):
        config.optimizer.update(lrr=1.0)
    with pytest.raises(AttributeError, match="seeds"):
        config.seeds = 1


def test_a_leaf_keeps_its_type():
    config = schema.classification()
    with pytest.raises(TypeError, match="lr"):
        config.optimizer.lr = "fast"
    config.optimizer.lr = 1  # A whole number is a number.
    assert config.optimizer.lr == 1.0
    assert isinstance(config.optimizer.lr, float)


def test_model_options_become_leaves():
    config = schema.classification(dims=(1, 2))
    assert config.model.dims == (1, 2)


def test_two_configs_share_nothing():
    first = schema.classification()
    first.optimizer.lr = 7.0
    assert schema.classification().optimizer.lr != 7.0
