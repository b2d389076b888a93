"""From a config to pictures in batches."""

import jax
import numpy as np
import pytest
import runs

from lvb import inputs
from lvb.data import transforms
from lvb.training import sharding


def open_tiny(**changes):
    config = runs.tiny_config(**changes)
    return config, inputs.open_data(config, data_dir=None)


def test_synthetic_pictures_follow_the_config():
    config, data = open_tiny(**{"data.synthetic_length": 24, "model.num_classes": 5})
    assert len(data.train) == len(data.val) == 24
    assert len(data.train.class_names) == 5
    batch = next(inputs.train_batches(config, data, start_step=0))
    assert batch["image"].shape == (16, 32, 32, 1)


def test_digits_have_their_own_classes():
    _, data = open_tiny(**{"data.source": "digits"})
    assert (len(data.train), len(data.val)) == (1437, 360)


def test_another_number_of_classes_is_refused():
    changes = {"data.source": "digits", "model.num_classes": 7}
    with pytest.raises(ValueError, match=r"model\.num_classes=7, but digits has 10"):
        open_tiny(**changes)


@pytest.mark.parametrize("size", [0, 31, 4097, -224])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size={size} is out of range; use 32"):
        open_tiny(**{"data.image_size": size})


def test_crops_and_policies():
    config = runs.tiny_config(
        **{"data.crop": "resized", "data.augment": "jitter0.4", "data.area": (0.5, 1.0)}
    )
    transform = inputs.train_transform(config)
    assert isinstance(transform, transforms.TrainTransform)
    assert transform.area == (0.5, 1.0)
    assert len(transform.ops) == 1
    with pytest.raises(ValueError, match=r"data\.crop='random' is unknown"):
        inputs.train_transform(runs.tiny_config(**{"data.crop": "random"}))


def test_preprocessing_is_what_evaluation_does():
    config, data = open_tiny(**{"data.crop_ratio": 0.9})
    expected = transforms.EvalTransform(
        size=32, crop_ratio=0.9, channels=1, interpolation="bicubic"
    )
    assert data.eval_transform == expected
    notes = inputs.preprocessing(config)
    assert (notes["mean"], notes["std"]) == ([0.3], [0.4])


def test_batches_continue_where_they_stopped():
    config, data = open_tiny()
    with inputs.train_batches(config, data, start_step=0) as batches:
        straight = [next(batches) for _ in range(4)]
    with inputs.train_batches(config, data, start_step=2) as batches:
        for expected in straight[2:]:
            got = next(batches)
            np.testing.assert_array_equal(got["image"], expected["image"])
            np.testing.assert_array_equal(got["label"], expected["label"])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 97])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_every_held_out_example_comes_once(length, batch_size):
    config, data = open_tiny(
        **{"data.synthetic_length": length, "model.num_classes": 1}
    )
    size = sharding.round_up(batch_size, sharding.make_mesh(jax.devices()))
    with inputs.eval_batches(config, data, batch_size=size) as batches:
        rows = [batch["index"][batch["mask"]] for batch in batches]
    assert sorted(np.concatenate(rows).tolist()) == list(range(length))
