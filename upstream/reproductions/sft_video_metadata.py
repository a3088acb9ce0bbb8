# SPDX-License-Identifier: Apache-2.0
"""The SFT dataset loses the frame rate of a video, and the processor assumes 24 frames a second."""

import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from reproductions import _tiny

THEN = (
    "verl's dataset places a video at its true times: P2RSFTDataset in verl_p2r/plugin/datasets/sft_dataset.py still "
    "reads records and screens, but _encode and _decode can give way to verl's"
)
SAMPLE_FPS = 1.0


def fault() -> str | None:
    """Read one row with a video of 4 frames, one second apart, and ask for the seconds between its grids."""
    import pandas as pd
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    processor = _tiny.processor()
    with tempfile.TemporaryDirectory() as folder:
        pictures = [str(Path(folder) / f"{n}.png") for n in range(4)]
        for picture, path in zip(_tiny.frames(4), pictures, strict=True):
            picture.save(path)
        row = {
            "messages": [
                {"role": "user", "content": "<video>What moves?"},
                {"role": "assistant", "content": "A dot."},
            ],
            "videos": [{"video": pictures, "sample_fps": SAMPLE_FPS}],
        }
        file = str(Path(folder) / "sft.parquet")
        pd.DataFrame([row]).to_parquet(file)
        config = OmegaConf.create({"max_length": 256, "pad_mode": "no_padding", "truncation": "error"})
        inputs = MultiTurnSFTDataset([file], processor.tokenizer, config, processor)[0]["multi_modal_inputs"]
    wanted = processor.video_processor.temporal_patch_size / SAMPLE_FPS
    found = float(inputs["second_per_grid_ts"][0])
    if abs(found - wanted) < 1e-3:
        return None
    return f"frames one second apart count as {found:.3f} s between grids, should be {wanted:.3f} s"
