# SPDX-License-Identifier: Apache-2.0
"""The table of model families. Every difference between families is a field of it, and no other module compares names.

To support a family, add a row, then run the tests that `docs/extend/model-family.md` lists.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Time(Enum):
    """How a family tells its language model when a frame was shown."""

    STEPS = "one position per temporal grid, whatever the frame rate"
    SECONDS = "positions proportional to seconds: seconds per grid x tokens per second"
    TEXT = "a timestamp in the prompt before each temporal grid, which then counts as an image"


@dataclass(frozen=True)
class Tower:
    """The architecture of a family's vision tower, as far as its size depends on it.

    Args:
        name: attribute of the Hugging Face model that holds the tower.
        width_field: field of `vision_config` with the width of a block.
        out_field: field of `vision_config` with the width of the tower's output.
        mlp_ratio: width inside an MLP over the width of a block if the config does not give it; 0 for families whose
            config has `intermediate_size` instead.
        gated: MLPs have three matrices, with a bias each, instead of two.
        rms_norm: norms have no bias.
        patch_bias: the patch embedding has a bias.
        window: side of an attention window if the config does not give one, in pixels; 0 without windows.
        positions: learned position embeddings if the config does not give a number.
    """

    name: str = "visual"
    width_field: str = "hidden_size"
    out_field: str = "out_hidden_size"
    mlp_ratio: int = 0
    gated: bool = False
    rms_norm: bool = False
    patch_bias: bool = False
    window: int = 0
    positions: int = 0


@dataclass(frozen=True)
class Family:
    """A family of video language models.

    Args:
        model_type: `model_type` in its config.json.
        processor: class name of its Hugging Face processor.
        time: how a frame's time reaches the language model.
        tower: its vision tower.
        image_pixels: least and most pixels of an image in the published checkpoints.
        video_pixels: the same for a video; see `limits_whole_videos`.
        limits_whole_videos: `video_pixels` bounds all frames of a video together; otherwise each frame.
        head_norms: the language model normalizes queries and keys; otherwise their projections have biases.
        hybrid: most layers of the language model are linear attention (a gated delta rule), which carries a state from
            token to token, and the other layers gate what they attend to.
        one_tower_call: `plugin/fsdp/tower.py` can stand in for its forward pass; the shared prefix needs that.
        vllm_models: modules under `vllm.model_executor.models` whose processor is replaced to keep frame times (see
            `plugin/media/vllm_video.py`), each with the prefix of its class names.
    """

    model_type: str
    processor: str
    time: Time
    tower: Tower
    image_pixels: tuple[int, int]
    video_pixels: tuple[int, int]
    limits_whole_videos: bool = False
    head_norms: bool = False
    hybrid: bool = False
    one_tower_call: bool = False
    vllm_models: tuple[tuple[str, str], ...] = ()


QWEN2_VL = Family(
    model_type="qwen2_vl",
    processor="Qwen2VLProcessor",
    time=Time.STEPS,
    tower=Tower(width_field="embed_dim", out_field="hidden_size", mlp_ratio=4),
    image_pixels=(56 * 56, 12845056),
    video_pixels=(56 * 56, 12845056),
    one_tower_call=True,
)
QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    processor="Qwen2_5_VLProcessor",
    time=Time.SECONDS,
    tower=Tower(gated=True, rms_norm=True, window=112),
    image_pixels=(56 * 56, 12845056),
    video_pixels=(56 * 56, 12845056),
    one_tower_call=True,
    vllm_models=(("qwen2_5_vl", "Qwen2_5_VL"),),
)
QWEN3_VL = Family(
    model_type="qwen3_vl",
    processor="Qwen3VLProcessor",
    time=Time.TEXT,
    tower=Tower(patch_bias=True, positions=2304),
    image_pixels=(256 * 256, 4096 * 4096),
    video_pixels=(64 * 64, 25165824),
    limits_whole_videos=True,
    head_norms=True,
    one_tower_call=True,
    vllm_models=(("qwen3_vl", "Qwen3VL"), ("qwen3_vl_moe", "Qwen3VLMoe")),
)
QWEN3_5 = Family(
    model_type="qwen3_5",
    processor=QWEN3_VL.processor,
    time=Time.TEXT,
    tower=Tower(patch_bias=True, positions=2304),
    image_pixels=QWEN3_VL.image_pixels,
    video_pixels=QWEN3_VL.video_pixels,
    limits_whole_videos=True,
    head_norms=True,
    hybrid=True,
    one_tower_call=True,
    vllm_models=(("qwen3_5", "Qwen3_5"),),
)

FAMILIES = (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_5)
_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
_BY_PROCESSOR = {family.processor: family for family in reversed(FAMILIES)}


def family_of_processor(processor: Any) -> Family | None:
    """Find the family of a Hugging Face processor by its class name.

    Args:
        processor: a processor, or None for a text model.

    Returns:
        The first family with this processor, because families that share one treat media alike. None for a family that
        is not in the table.
    """
    return _BY_PROCESSOR.get(type(processor).__name__)


def family_of_model(model_type: object) -> Family | None:
    """Find a family by the `model_type` of its config.

    Args:
        model_type: the field's value.

    Returns:
        None for a family that is not in the table.

    >>> family_of_model("qwen3_vl").time
    <Time.TEXT: 'a timestamp in the prompt before each temporal grid, which then counts as an image'>
    >>> family_of_model("llama") is None
    True
    """
    return _BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None


def known_families() -> str:
    """The model types in the table, for error messages.

    >>> known_families()
    'qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_5'
    """
    return ", ".join(_BY_MODEL_TYPE)
