import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lvb.data import decode


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def picture():
    """A smooth RGB picture of 20 x 12 pixels, whose corners differ."""
    y, x = np.mgrid[:12, :20]
    channels = [x * 12, y * 20, 255 - x * 6 - y * 6]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels(data):
    return np.asarray(decode.decode_image(data)).astype(int)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_pixels(picture, format):
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = pixels(encode(picture, format, **options))
    np.testing.assert_array_equal(decoded, np.asarray(picture))


def test_jpeg_is_close(picture):
    decoded = pixels(encode(picture, "JPEG", quality=95))
    assert decoded.shape == (12, 20, 3)
    assert np.abs(decoded - np.asarray(picture)).mean() < 3


def test_grayscale_stays_grayscale(picture):
    image = decode.decode_image(encode(picture.convert("L"), "PNG"))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture.convert("L")))


def test_cmyk_jpeg_becomes_the_colours_it_shows(picture):
    decoded = pixels(encode(picture.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded - np.asarray(picture)).mean() < 6


def test_palette_with_and_without_transparency(picture):
    palette = picture.quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(pixels(encode(palette, "PNG")), expected)
    opaque = encode(palette, "PNG", transparency=bytes([0] * 10 + [255] * 54))
    np.testing.assert_array_equal(pixels(opaque), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped(picture, mode):
    image = picture.convert(mode)
    image.putalpha(0)
    plain = picture.convert(mode[:-1])
    np.testing.assert_array_equal(pixels(encode(image, "PNG")), np.asarray(plain))


def test_one_bit_becomes_black_and_white(picture):
    image = picture.convert("1")
    expected = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(pixels(encode(image, "PNG")), expected)


def test_sixteen_bits_become_their_high_byte():
    levels = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    decoded = pixels(encode(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(decoded, levels >> 8)


def test_unbounded_pixels_are_refused():
    floats = Image.fromarray(np.zeros((2, 2), np.float32))
    with pytest.raises(decode.BrokenImage, match="32-bit floats"):
        decode.decode_image(encode(floats, "TIFF"))
    integers = Image.fromarray(np.full((2, 2), 1 << 20, np.int32))
    with pytest.raises(decode.BrokenImage, match="32-bit integers"):
        decode.decode_image(encode(integers, "TIFF"))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(picture, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), turn(np.asarray(picture)))


@pytest.mark.parametrize("orientation", [None, *range(10), 0xFFFF])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_upright_pictures_without_a_copy_equal_pillows(picture, format, orientation):
    """The way without a copy against the one that always copies."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encode(picture, format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), np.asarray(expected))


def test_unreadable_exif_keeps_the_pixels(picture):
    data = encode(picture, "JPEG", exif=b"Exif\x00\x00II*\x00garbage", quality=95)
    assert pixels(data).shape == (12, 20, 3)


def test_one_pixel():
    np.testing.assert_array_equal(
        pixels(encode(Image.new("RGB", (1, 1), (3, 4, 5)), "PNG")), [[[3, 4, 5]]]
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncation_is_noticed(picture, format):
    data = encode(picture.resize((200, 120)), format)
    with pytest.raises(decode.BrokenImage, match=r"truncated|damaged"):
        decode.decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"not a picture at all", "none of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of JPEG, PNG"),
    ],
)
def test_other_content_is_refused(data, message):
    with pytest.raises(decode.BrokenImage, match=message):
        decode.decode_image(data)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


# 10,000 squared is above our limit and below Pillow's, 30,000 squared above both.
@pytest.mark.parametrize("side", [10_000, 30_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header(side):
    with pytest.raises(decode.BrokenImage, match="too large"):
        decode.decode_image(png_header(side, side))


def test_a_large_picture_is_read():
    image = Image.new("L", (9000, 3000), 7)
    assert decode.decode_image(encode(image, "PNG", compress_level=1)).size == (
        9000,
        3000,
    )


def test_pixels_need_no_decoding():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for array in (gray, gray[..., None]):
        image = decode.decode_image(array)
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), gray)
    colour = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(np.asarray(decode.decode_image(colour)), colour)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((0, 3), np.uint8),
        np.zeros(3, np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(decode.BrokenImage, match="give uint8"):
        decode.decode_image(array)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(decode.BrokenImage("the file is empty")))
    assert str(error) == "the file is empty"


def mutate(data, rng):
    """Flips, cuts, inserts or repeats some bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        at = int(rng.integers(len(data)))
        match rng.integers(4):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                del data[at : at + int(rng.integers(1, 40))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 8)))
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 60))]
        if not data:
            break
    return bytes(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_decode_or_say_why(picture):
    """500 files: a picture in a plain mode, or one sentence; nothing else escapes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [
        encode(picture, "JPEG", exif=exif),
        encode(picture.convert("CMYK"), "JPEG"),
        encode(picture, "JPEG", progressive=True),
        encode(picture, "PNG", exif=exif),
        encode(picture.quantize(16), "PNG", transparency=3),
        encode(picture, "WEBP"),
        encode(picture, "TIFF", compression="tiff_lzw"),
        encode(picture, "TIFF"),
        encode(picture, "BMP"),
        encode(picture, "PPM"),
    ]
    rng = np.random.default_rng(0)
    sentences = []
    outcomes = {"decoded": 0, "refused": 0}
    for number in range(500):
        data = mutate(seeds[number % len(seeds)], rng)
        try:
            image = decode.decode_image(data)
        except decode.BrokenImage as error:
            outcomes["refused"] += 1
            sentences.append(str(error))
        else:
            outcomes["decoded"] += 1
            assert image.mode in ("L", "RGB")
            assert np.asarray(image).dtype == np.uint8
    assert all(sentence and "\n" not in sentence for sentence in sentences)
    # Each branch is reached often, so the test sees both.
    assert min(outcomes.values()) > 50
