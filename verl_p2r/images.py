# SPDX-License-Identifier: Apache-2.0
"""Images as canonical elements, decoded and resized as qwen-vl-utils does it."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from verl_p2r.media import MediaError


def fetch_image(element: Mapping[str, Any], patch_size: int) -> Image.Image:
    """Read an image.

    Args:
        element: a canonical element, see `elements`.
        patch_size: of the model's processor, in pixels.

    Raises:
        MediaError: it cannot be read.
    """
    from qwen_vl_utils import vision_process

    source = element["image"]
    try:
        if isinstance(source, bytes):
            element = {**element, "image": Image.open(BytesIO(source))}
        return vision_process.fetch_image(dict(element), image_patch_size=patch_size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = source if isinstance(source, str) else "<an image in memory>"
        raise MediaError(f"{name}: cannot be read as an image ({error})") from error
