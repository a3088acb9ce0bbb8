# SPDX-License-Identifier: Apache-2.0
"""Images, opened in one way: of a known format, bounded in pixels and time, upright by their EXIF orientation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps

from verl_p2r.media import torchvision_ops
from verl_p2r.media.image_ends import is_whole
from verl_p2r.media.local_files import is_local_file
from verl_p2r.media.plan import image_size
from verl_p2r.media.source import Deadline, MediaError, name_of, resolve

# Pillow's names of formats that hold pictures and no programs; others (EPS, PDF, WMF, …) start programs or read fonts.
KNOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
MAX_IMAGE_PIXELS = 1 << 27  # that a file may declare: 134 megapixels, 0.4 GB when decoded
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)

Image.init()  # else Pillow does not know all formats by their names
FORMATS = tuple(name for name in KNOWN if name in Image.OPEN)


def probe_image(
    content: Any, element: Mapping[str, Any] | None = None, deadline: Deadline | None = None
) -> tuple[int, int]:
    """Size of an image, upright, once it is certain that the image is whole.

    Args:
        content: a path, bytes, or another source of an image; see `media_source`.
        element: the element that it is from, for its `allow_urls`.
        deadline: None for one of its own.

    Returns:
        Height and width, in pixels.

    Raises:
        MediaError: the file is missing, not an image of a known format, too large, or cut off.
    """
    with _opened(content, element, deadline) as image:
        stream = getattr(image, "fp", None)
        if stream is not None and not is_whole(image, stream):
            image.load()
        # Image's own method: that of PNG decodes the picture.
        sideways = Image.Image.getexif(image).get(ORIENTATION) in SIDEWAYS and image.format != "TIFF"
        return (image.width, image.height) if sideways else (image.height, image.width)


def read_image(element: Mapping[str, Any], deadline: Deadline | None = None) -> Image.Image:
    """Read an image as a model should see it.

    Args:
        element: an image element of a message.
        deadline: None for one of its own.

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
        patch_size: of the model's processor, in pixels.

    Raises:
        MediaError: it cannot be read, or its rules cannot be met.
    """
    image = read_image(element)
    height, width = image_size(element, (image.height, image.width), patch_size)
    return image.resize((width, height))


@contextmanager
def _opened(content: Any, element: Mapping[str, Any] | None, deadline: Deadline | None) -> Iterator[Image.Image]:
    """Open an image, and turn whatever its decoder raises into a `MediaError`."""
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
            yield image
        deadline.check()
    except MediaError:
        raise
    except Exception as error:  # decoders may raise anything on damaged files
        raise MediaError(f"{file.name}: cannot be opened as an image ({type(error).__name__}: {error})") from error
