"""Picture files that no camera writes: damaged, mislabelled, spliced and lying."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HUGE = 0x7FFF_FFF0  # Pixels along a side that a header may claim.


def encode(image, format, **options):
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind, body, *, length=None):
    """A PNG chunk, whose stated length may be a lie."""
    size = struct.pack(">I", len(body) if length is None else length)
    return size + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def whole():
    """Pictures of every kind that a data set may hold, by name; all can be read."""
    y, x = np.mgrid[:24, :32]
    rgb = np.stack([x * 8, y * 10, 255 - x * 4 - y * 4], axis=-1).astype(np.uint8)
    picture = Image.fromarray(rgb)
    other = Image.fromarray(rgb[:, ::-1])
    deep = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames = dict(save_all=True, append_images=[other, picture])
    return {
        "jpeg": encode(picture, "JPEG", exif=exif),
        "progressive": encode(picture, "JPEG", progressive=True),
        "cmyk": encode(picture.convert("CMYK"), "JPEG"),
        "png": encode(picture, "PNG", exif=exif),
        "png16": encode(deep, "PNG"),
        "palette": encode(picture.quantize(16), "PNG", transparency=bytes(range(16))),
        "apng": encode(picture, "PNG", **frames),
        "webp": encode(picture, "WEBP"),
        "webp animated": encode(picture, "WEBP", **frames),
        "tiff": encode(picture, "TIFF"),
        "tiff lzw": encode(picture, "TIFF", compression="tiff_lzw"),
        "tiff pages": encode(deep, "TIFF", save_all=True, append_images=[deep]),
        "bmp": encode(picture, "BMP"),
        "ppm": encode(picture, "PPM"),
        "pgm16": encode(deep, "PPM"),
    }


def bombs():
    """Small files that claim to be large, or unpack to be."""
    files = whole()
    png, jpeg = files["png"], files["jpeg"]
    head, zeros = png[:33], zlib.compress(bytes(50 << 20), 9)
    start = jpeg.index(b"\xff\xc0")
    rows = {
        "png huge": png[:16] + struct.pack(">II", HUGE, HUGE) + png[24:],
        "png checked": _png_header(HUGE, HUGE),
        "png wide": _png_header(HUGE, 1),
        "png below limit": _png_header(9_000, 9_000),
        "png zero": _png_header(0, 0),
        "png text": head + chunk(b"zTXt", b"k\0\0" + zeros) + png[33:],
        "png profile": head + chunk(b"iCCP", b"k\0\0" + zeros) + png[33:],
        "png length": head + chunk(b"tEXt", b"k\0v", length=0xFFFF_FFFF) + png[33:],
        "png pixels": head + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        "png many": head + chunk(b"tEXt", b"k\0v") * 20_000 + png[33:],
        "jpeg huge": jpeg[: start + 5] + b"\xff" * 4 + jpeg[start + 9 :],
        "jpeg zero": jpeg[: start + 5] + b"\0" * 4 + jpeg[start + 9 :],
        "bmp huge": _patched(files["bmp"], 18, "<ii", HUGE, HUGE),
        "bmp upside down": _patched(files["bmp"], 18, "<ii", 32, -(2**31)),
        "ppm huge": b"P6 %d %d 255\n" % (HUGE, HUGE) + bytes(99),
        "ppm digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "ppm comment": b"P6 #" + b"x" * (1 << 20),
        "pgm below limit": b"P5 9000 9000 65535\n",
        "webp huge": _patched(files["webp animated"], 24, "<3s3s", *[b"\xff" * 3] * 2),
        "tiff huge": _tiff(HUGE, HUGE),
        "tiff count": _tiff(32, 24, count=0xFFFF_FFFF),
        "tiff loop": _patched(files["tiff"], 4, "<I", 4),
    }
    return rows


def _png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _patched(data, at, format, *values):
    data = bytearray(data)
    struct.pack_into(format, data, at, *values)
    return bytes(data)


def _tiff(width, height, *, count=1):
    """A TIFF of one strip whose tags may claim anything."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8)]
    tags += [(277, 1), (278, height), (279, 64)]
    body = struct.pack("<H", len(tags))
    for tag, value in tags:
        body += struct.pack("<HHII", tag, 4, count if tag == 273 else 1, value)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4)


class Mutator:
    """Draws damaged files; the same ones from the same seed."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self._files = whole()
        self._bombs = list(bombs().items())

    def draw(self):
        """Returns how a file came about, and its bytes."""
        kinds = ["flip", "cut", "header", "splice", "noise", "bomb", "tail", "twice"]
        kind = self._rng.choice(kinds, p=_ODDS)
        if kind == "bomb":
            name, data = self._bombs[self._rng.integers(len(self._bombs))]
            return f"bomb {name}", data
        name, data = self._file()
        return f"{kind} {name}", getattr(self, f"_{kind}")(data)

    def _file(self):
        names = list(self._files)
        name = names[self._rng.integers(len(names))]
        return name, self._files[name]

    def _at(self, data):
        return int(self._rng.integers(len(data) + 1))

    def _flip(self, data):
        """Some bits, mostly of the first bytes, where the headers are."""
        data = bytearray(data)
        for _ in range(self._rng.integers(1, 20)):
            near = min(len(data), 64 if self._rng.random() < 0.5 else len(data))
            data[self._rng.integers(near)] ^= 1 << int(self._rng.integers(8))
        return bytes(data)

    def _cut(self, data):
        return data[: self._at(data)]

    def _header(self, data):
        """The first bytes of another file."""
        size = int(self._rng.integers(1, 40))
        return self._file()[1][:size] + data[size:]

    def _splice(self, data):
        other = self._file()[1]
        return data[: self._at(data)] + other[self._at(other) :]

    def _noise(self, data):
        at = self._at(data)
        return data[:at] + self._rng.bytes(int(self._rng.integers(1, 400))) + data[at:]

    def _tail(self, data):
        return data + self._rng.bytes(int(self._rng.integers(1, 4000)))

    def _twice(self, data):
        return data + self._file()[1]


_ODDS = (0.3, 0.15, 0.15, 0.1, 0.1, 0.1, 0.05, 0.05)
