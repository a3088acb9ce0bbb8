# SPDX-License-Identifier: Apache-2.0
"""Opening images: known formats only, bounded in pixels, scans and time, upright by their EXIF orientation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from verl_p2r.media import torchvision_ops
from verl_p2r.media.deadline import Deadline, MediaError
from verl_p2r.media.image_ends import is_whole, jpeg_scans
from verl_p2r.media.local_files import is_local_file
from verl_p2r.media.plan import image_size
from verl_p2r.media.source import name_of, resolve

# Pillow's names of formats that only hold pictures; others (EPS, PDF, WMF, …) start programs or read fonts.
KNOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
MAX_IMAGE_PIXELS = 1 << 27  # 134 megapixels, 0.4 GB when decoded
# Encoders write 1 to 24 scans (libjpeg: 10 in YCbCr, 18 to 24 with four components). Each scan is a pass over the
# picture inside libjpeg, which no deadline can interrupt: 1000 scans of 3 megapixels take 7 s.
MAX_JPEG_SCANS = 100
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)

Image.init()  # without it Pillow does not know the names of all formats
FORMATS = tuple(name for name in KNOWN if name in Image.OPEN)


def probe_image(
    content: Any, element: Mapping[str, Any] | None = None, deadline: Deadline | None = None
) -> tuple[int, int]:
    """Read the upright size of an image, and check that the image is complete.

    Args:
        content: a path, bytes, or another source of an image; see `source.py`.
        element: the message element that holds it, for its `allow_urls`; None without one.
        deadline: for all work on the file; None starts a new one.

    Returns:
        Height and width, in pixels.

    Raises:
        MediaError: the file is missing, too large, truncated, or not an image of a known format.
    """
    with _opened(content, element, deadline) as image:
        stream = getattr(image, "fp", None)
        if stream is not None and not is_whole(image, stream):
            image.load()
        # Image's own method, because PNG's decodes the picture.
        sideways = Image.Image.getexif(image).get(ORIENTATION) in SIDEWAYS and image.format != "TIFF"
        return (image.width, image.height) if sideways else (image.height, image.width)


def read_image(element: Mapping[str, Any], deadline: Deadline | None = None) -> Image.Image:
    """Read an image as a model should see it.

    Args:
        element: an image element of a message.
        deadline: for all work on the file; None starts a new one.

    Returns:
        The image in RGB and upright; transparency becomes white where the file has an alpha channel.

    Raises:
        MediaError: it cannot be read.
    """
    to_rgb = torchvision_ops.qwen().to_rgb  # imported before the clock starts
    with _opened(element["image"], element, deadline) as image:
        image.load()
        return to_rgb(ImageOps.exif_transpose(image))


def fetch_image(element: Mapping[str, Any], patch_size: int) -> Image.Image:
    """Read an image and resize it as qwen-vl-utils' `fetch_image` does.

    Args:
        element: as for `read_image`, with the rules that `media.plan_image` reads.
        patch_size: patch size of the model's processor, in pixels.

    Raises:
        MediaError: it cannot be read, or its rules cannot be met.
    """
    image = read_image(element)
    height, width = image_size(element, (image.height, image.width), patch_size)
    return image.resize((width, height))


@contextmanager
def _opened(content: Any, element: Mapping[str, Any] | None, deadline: Deadline | None) -> Iterator[Image.Image]:
    """Open an image; anything that its decoder raises becomes a `MediaError`."""
    element = element if element is not None else {"image": content}
    deadline = deadline or Deadline(name_of({"image": content}))
    file = resolve(content, element, deadline)
    if isinstance(file, Image.Image):
        yield file.copy()
        return
    if isinstance(file.content, str) and not is_local_file(file.content):
        raise MediaError(f"{file.name}: cannot be opened as an image (No such file: only regular files are read)")
    try:
        with file.open() as stream, Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise MediaError(
                    f"{file.name}: {image.width} x {image.height} pixels are more than {MAX_IMAGE_PIXELS}: "
                    "make the image smaller"
                )
            if image.format in ("JPEG", "MPO") and (scans := jpeg_scans(stream)) > MAX_JPEG_SCANS:
                raise MediaError(
                    f"{file.name}: a JPEG with {scans} scans, more than {MAX_JPEG_SCANS}, takes too long to decode: "
                    "save it again, or drop it"
                )
            yield image
        deadline.check()
    except MediaError:
        raise
    except UnidentifiedImageError as error:  # its own text names the open file object, which differs in every run
        raise MediaError(
            f"{file.name}: cannot be opened as an image (none of {', '.join(FORMATS)}, or damaged at its start)"
        ) from error
    except Exception as error:  # decoders may raise anything on damaged files
        raise MediaError(f"{file.name}: cannot be opened as an image ({type(error).__name__}: {error})") from error
