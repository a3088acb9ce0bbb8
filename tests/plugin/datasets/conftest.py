# SPDX-License-Identifier: Apache-2.0
"""An image, and an SFT row about it."""

import pytest
from PIL import Image
from sft_rows import SIZE, text_row


@pytest.fixture
def image(tmp_path) -> str:
    """The path of an image."""
    Image.new("RGB", (112, 112), "red").save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


@pytest.fixture
def image_row(image) -> dict:
    """A row of SFT about the image."""
    row = text_row()
    row["messages"][0]["content"] = "<image>What is it?"
    return {**row, "images": [{"image": image, **SIZE}]}
