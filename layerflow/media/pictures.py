"""The one place where a picture file is opened: by its first bytes, as one of a few formats."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from layerflow.clip import U8
from layerflow.media.cells import MAX_STILL_PIXELS, MediaError
from layerflow.media.isolate import isolated
from layerflow.media.opening import check_file

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MAX_STILL_BYTES = 512 << 20


def open_still(path: Path) -> Image.Image:
    """A picture file whose header was read and found within the limits. Raises MediaError."""
    check_file(path, MAX_STILL_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"over the limit of {MAX_STILL_PIXELS} pixels") from error
    except Exception as error:
        raise MediaError(f"not a readable picture: {type(error).__name__}") from error
    if image.format == "TIFF":
        vars(image)["filename"] = ""  # else Pillow maps turned pictures at the wrong stride
    width, height = image.size
    if width * height > MAX_STILL_PIXELS:
        image.close()
        raise MediaError(f"HxW {height}x{width} is over the limit of {MAX_STILL_PIXELS} pixels")
    return image


@contextmanager
def decoding(path: Path) -> Iterator[Image.Image]:
    """A picture file, within the limits on what is decoded. MediaError for all that goes wrong."""
    with open_still(path) as image, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield image
        except MediaError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise MediaError(f"cannot be decoded: {type(error).__name__}: {error}") from error


@isolated
def read_picture(path: Path) -> U8:
    """A picture as uint8 ``[H, W, 3]`` or, with transparency, ``[H, W, 4]``, upright.

    Raises MediaError for what is no picture, or damaged, or over the limits.
    """
    with decoding(path) as image:
        upright = ImageOps.exif_transpose(image)
        clear = "A" in upright.getbands() or "transparency" in upright.info
        return np.asarray(upright.convert("RGBA" if clear else "RGB"))
