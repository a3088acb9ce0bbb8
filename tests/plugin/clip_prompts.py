# SPDX-License-Identifier: Apache-2.0
"""Prompts about the shared clips, made as verl's agent loop makes them, and their true layout."""

from collections.abc import Callable
from fractions import Fraction

import av
import torch
from qwen_vl_utils import process_vision_info
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.media.decode import install_reader
from verl_p2r.media.families import Time, family_of_model

install_reader()
RATE = 2  # tokens per second of Qwen2.5-VL
TEXT = 200  # the id of some text token

# Clip, sampling rules, frames taken, and the frame rate they come to.
SAMPLES = [
    ("slow", {"fps": 2.0}, 8, Fraction(2)),
    ("quick", {"fps": 2.0}, 4, Fraction(2)),
    ("quick", {"fps": 4.0}, 8, Fraction(4)),
    ("quick", {"nframes": 6}, 6, Fraction(3)),
    ("slow", {"nframes": 4}, 4, Fraction(1)),
    ("odd", {"nframes": 6}, 6, Fraction(2)),
    ("odd", {"nframes": 14}, 14, Fraction(14, 3)),
    ("film", {"nframes": 16}, 16, Fraction(16000, 1001)),
    ("film", {"nframes": 4}, 4, Fraction(4000, 1001)),
    ("long", {"nframes": 12}, 12, Fraction(20, 7)),  # 0.7 s a grid, in float32 a little less: grid 5 is at 7
]


def video(clips, sample) -> dict:
    return {"type": "video", "video": str(clips[sample[0]]), **sample[1], "resized_height": 112, "resized_width": 112}


def medium(sample) -> tuple[int, int, int, Fraction]:
    """A sample for `true_positions`: 112 x 112 pixels are 4 x 4 merged patches."""
    *_, frames, fps = sample
    return frames // 2, 4, 4, Fraction(2) / fps * RATE


def stills(sample) -> list[tuple[int, int, int, Fraction]]:
    """The same for Qwen3-VL, to which each temporal grid is a still; its patches are 16 pixels, of 128 x 128."""
    return [(1, 4, 4, Fraction(1))] * (sample[2] // 2)


def layout_of(family: str) -> Callable[[tuple], list]:
    """The function that lays a sample out for a family with STEPS or TEXT; see `verl_p2r/media/families.py`."""
    if family_of_model(family).time is Time.TEXT:
        return stills
    return lambda sample: [(*medium(sample)[:3], Fraction(1))]


def timestamps(clips, sample) -> list[str]:
    """What Qwen3-VL's prompt says of a sample: the mean time of each two frames, by the definition of both."""
    *_, count, _ = sample
    with av.open(str(clips[sample[0]])) as container:
        rate, total = Fraction(container.streams.video[0].average_rate), container.streams.video[0].frames
    seconds = [round(Fraction(i * (total - 1), count - 1)) / rate for i in range(count)]
    return [f"<{float((a + b) / 2):.1f} seconds>" for a, b in zip(seconds[::2], seconds[1::2], strict=True)]


def media_of(content: list[dict], image_patch_size: int = 14) -> tuple:
    """Images, and videos with their metadata, as the dataset hands them to the agent loop."""
    messages = [{"role": "user", "content": content}]
    return process_vision_info(messages, image_patch_size=image_patch_size, return_video_metadata=True)


def encode(processor, content: list[dict]) -> tuple[torch.Tensor, dict]:
    """Token ids and processor outputs of one user turn."""
    messages = [{"role": "user", "content": content}]
    images, videos = media_of(content, processor.image_processor.patch_size)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = dict(build_multimodal_processor_inputs(processor, text=[text], images=images, videos=videos))
    return inputs.pop("input_ids")[0], inputs


def parts_of(processor, ids: torch.Tensor, media: list) -> list:
    """`true_positions`' view of a prompt: the lengths of the texts between its media."""
    parts, text, queue = [], 0, list(media)
    cursor = 0
    while cursor < len(ids):
        if queue and ids[cursor] in (processor.image_token_id, processor.video_token_id):
            t, h, w, _ = queue[0]
            parts += [text, queue.pop(0)]
            text, cursor = 0, cursor + t * h * w
        else:
            text, cursor = text + 1, cursor + 1
    assert not queue
    return [*parts, text]
