"""Image files as uint8 tensors, with all of their grey levels, or refused by name."""

import io
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fsr.files import FSRError, MissingData

SHOWN = 5  # damaged images that a message names


def _rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB, upright, transparent parts on white; ValueError for a mode without a known range of values."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 is white; Pillow would clip 16 bits to 8
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode!r} (32-bit) has no fixed range of values; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise ValueError(f"its mode {image.mode!r} cannot be converted to RGB") from None


def decode(data: bytes, size: int) -> Tensor:
    """One image file as (3, size, size) uint8, resized bilinearly where it has another size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of damaged metadata, which is not used
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            image = _rgb(file)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decode_all(files: Iterable[tuple[str, Callable[[], bytes]]], size: int) -> Tensor:
    """Images by (name, function that reads the bytes) as (N, 3, size, size) uint8; MissingData names the unreadable."""
    images, failed = [], []
    for name, read in files:
        try:
            images.append(decode(read(), size))
        except FSRError:  # a signal asked to stop
            raise
        except Exception as error:  # foreign bytes lead Pillow into any exception: bombs, wrong headers, bad checksums
            reason = " ".join(str(error).split()) or type(error).__name__
            failed.append(f"{name} ({reason.replace(repr(name), 'it')[:150]})")
    if failed:
        more = f" and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        raise MissingData(f"images that cannot be read: {', '.join(failed[:SHOWN])}{more}; replace or remove them")
    return torch.stack(images)
