"""From the bytes of a picture file to an upright 8-bit picture.

Choices that move pixels:

1. Alpha is dropped, not composited: the published recipes load pictures so.
2. EXIF orientation is applied, so that a phone's picture stands upright.
3. Sixteen bits become eight by their high byte.
4. Of an animation only the first frame is read.
"""

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

# Formats by content, not by name. Pillow's other readers are left out: some start
# programs (EPS), and none belongs to a data set of photographs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")

# Pillow warns from here on and refuses twice as much; 9,459 x 9,459 pixels.
MAX_PIXELS = 89_478_485

_PLAIN_MODES = ("L", "RGB")


class BrokenImage(ValueError):
    """A picture that cannot be used; the message says why in one sentence."""


def decode_image(data: bytes | np.ndarray) -> Image.Image:
    """Returns an upright picture of mode "L" (grayscale) or "RGB".

    Args:
      data: the bytes of a file in one of `FORMATS`, or decoded uint8 pixels (H, W),
        (H, W, 1) or (H, W, 3).

    Raises:
      BrokenImage: the bytes are empty, truncated, of another format, of more than
        `MAX_PIXELS` pixels, or damaged in any other way.
    """
    if isinstance(data, np.ndarray):
        return _from_pixels(data)
    if not data:
        raise BrokenImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BrokenImage(_too_large(f"{image.width} x {image.height} pixels"))
        image.load()
        return _to_plain(_upright(image))
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(
            "the content is none of JPEG, PNG, WebP, BMP, TIFF and PPM"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(_too_large("a decompression bomb")) from error
    except Exception as error:
        # Pillow's parsers meet hostile bytes with nearly any exception there is.
        reason = " ".join(str(error).split()) or "no reason given"
        raise BrokenImage(
            f"the content is damaged ({type(error).__name__}: {reason})"
        ) from error


def _too_large(what: str) -> str:
    return f"the image is too large: {what}, where {MAX_PIXELS:,} pixels fit"


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    channels_fit = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)
    if pixels.dtype != np.uint8 or not channels_fit or pixels.size == 0:
        raise BrokenImage(
            f"pixels of shape {pixels.shape} and type {pixels.dtype} do not fit; "
            "give uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
        )
    return Image.fromarray(pixels)


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; unreadable EXIF counts as none."""
    try:
        # Most pictures stand upright already, and Pillow would copy each of them.
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:
        # The pixels are whole and the metadata is not: keep the pixels as stored.
        return image


def _to_plain(image: Image.Image) -> Image.Image:
    """Converts any mode that has a meaning in 8 bits to "L" or "RGB"."""
    if image.mode in _PLAIN_MODES:
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode.startswith("I"):
        return _high_byte(image)
    if image.mode == "F":
        raise BrokenImage("pixels are 32-bit floats, whose range is unknown")
    if image.mode in ("P", "PA"):
        # Straight to RGB, Pillow warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """Reduces 16-bit grayscale, which Pillow stores as "I;16..." or "I", to 8 bits."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise BrokenImage("pixels are 32-bit integers, whose range is unknown")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
