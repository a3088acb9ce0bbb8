# SPDX-License-Identifier: Apache-2.0
"""Does the package know a model's family? Compares its token arithmetic with what the processor really does.

python examples/extend/check_family.py MODEL_FOLDER
"""

import sys

import numpy as np
import torch

from verl_p2r.media import torchvision_ops
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_video, prompt_tokens

torchvision_ops.install()  # lets torchvision load next to a CPU build of torch; otherwise does nothing

from transformers import AutoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402

FRAMES, SIDE, FPS = 8, 112, 2.0


def counted_and_real(folder: str) -> tuple[int, int]:
    """Tokens of one prompt with a video of 8 frames: by arithmetic, and by the processor itself.

    Args:
        folder: a model's, with its processor.

    Raises:
        ValueError: the processor belongs to a family that the package does not know.
    """
    processor = AutoProcessor.from_pretrained(folder)
    spec = VisionSpec.from_processor(processor)
    if spec is None:
        raise ValueError(f"{type(processor).__name__} is not a family that the package knows")
    text = f"{spec.vision_start}{spec.video_token}{spec.vision_end}What moves?"
    element = {"video": "clip.mp4", "nframes": FRAMES, "resized_height": SIDE, "resized_width": SIDE}
    plan = plan_video(element, VideoInfo(FRAMES, FPS, SIDE, SIDE), spec)
    frames = torch.from_numpy(np.zeros((FRAMES, 3, plan.height, plan.width), np.uint8))
    metadata = VideoMetadata(total_num_frames=FRAMES, fps=FPS, frames_indices=list(range(FRAMES)))
    made = processor(
        text=[text], videos=[frames], videos_kwargs={"video_metadata": [metadata], "do_sample_frames": False}
    )
    return prompt_tokens(text, [plan], processor.tokenizer, spec), len(made["input_ids"][0])


if __name__ == "__main__":
    counted, real = counted_and_real(sys.argv[1])
    print(f"{counted} tokens by arithmetic, {real} by the processor")
    sys.exit(counted != real)
