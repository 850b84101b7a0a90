"""Encoded images to pixels, within bounds: a hostile file is a :class:`DataError`, not a full memory."""

import io
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from tradeoff.core.errors import DataError

MAX_PIXELS = 50_000_000
"""Of one image: more than any camera picture of ImageNet has."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
EXTENSIONS = frozenset((".jpeg", ".jpg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"))


def open_image(source: bytes | Path, mode: str = "RGB") -> Image.Image:
    """The decoded image, in ``mode`` ("RGB" or "L").

    Raises:
        DataError: it is no image of the known formats, is damaged, or has more than :data:`MAX_PIXELS`.
    """
    name = str(source) if isinstance(source, Path) else "an image of the data set"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound here is tighter
            with Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
            ) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{name} has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}"
                    )
                return image.convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError | FileNotFoundError):
            raise
        raise DataError(f"{name} cannot be decoded: {error}") from error


def to_pixels(image: Image.Image) -> UInt8[np.ndarray, "channels height width"]:
    """Channels first, as a contiguous copy."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
