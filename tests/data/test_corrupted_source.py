"""ImageNet-C in memory follows the steps by which the published files were made."""

import io

import numpy as np
import pytest
from PIL import Image

from lvb.data import corrupted_source, corruptions, decode, sources


def noise_source(sizes=((300, 260), (256, 400)), broken=False):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in sizes]
    if broken:
        images[0] = b"no picture"
    return sources.ArraySource(
        images, np.arange(len(sizes)), class_names=("a", "b"), name="noise"
    )


def test_resize_crop_corrupt_and_jpeg():
    plain = noise_source()
    source = corrupted_source.CorruptedSource(
        plain, name="contrast", severity=2, seed=3
    )
    assert len(source) == 2
    assert source.class_names == ("a", "b")
    for index in range(2):
        image = Image.fromarray(plain[index].image)
        scale = 256 / min(image.size)
        size = [round(side * scale) for side in image.size]
        resized = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((side - 224) / 2) for side in size)
        crop = np.asarray(resized.crop((left, top, left + 224, top + 224)))
        expected = corruptions.corrupt(
            crop, "contrast", severity=2, seed=3, example=index
        )
        file = io.BytesIO()
        Image.fromarray(expected).save(file, "JPEG", quality=85)
        stored = np.asarray(Image.open(file)).astype(int)
        ours = np.asarray(Image.open(io.BytesIO(source[index].image))).astype(int)
        # Half pixels of the crop and fixed point in the resize move a level or two.
        assert np.abs(ours - stored).mean() < 2
        assert source[index].label == index


def test_a_broken_image_is_named():
    source = corrupted_source.CorruptedSource(
        noise_source(broken=True), name="fog", severity=1
    )
    with pytest.raises(decode.BrokenImage):
        source[0]
    assert source.describe(0) == "noise[0] with fog/1"
    assert len(source[1].image) > 0
