# SPDX-License-Identifier: Apache-2.0
"""vLLM's processor for families with `Time.SECONDS` (Qwen2.5-VL), with the frame times kept.

verl passes vLLM each video with its metadata, and vLLM's parser drops the metadata. The Hugging Face processor then
assumes 24 fps, and the temporal positions of the rollout collapse. Remove this module when vLLM's processor sets
`video_needs_metadata` and keeps `second_per_grid_ts` in full precision.

Imported by the hook in `vllm_video.py` once vLLM has loaded its model class.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

import torch
from transformers.video_utils import VideoMetadata
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from verl_p2r.media.positions import guarded_seconds_per_grid

METADATA_FIELDS = {field.name for field in fields(VideoMetadata)}


class Parser(qwen2_vl.Qwen2VLMultiModalDataParser):
    """Pairs every video with its metadata, which then reaches the processor and the cache key.

    The metadata is {} where the caller gave none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.video_needs_metadata = True

    def _get_video_with_metadata(self, video: Any) -> Any:
        video, metadata = super()._get_video_with_metadata(video)
        return video, metadata or {}


class Info(qwen2_5_vl.Qwen2_5_VLProcessingInfo):
    """vLLM's processing info with our parser."""

    def get_data_parser(self) -> Parser:
        """Build the parser with the settings of vLLM's own."""
        parser = super().get_data_parser()
        return Parser(parser._spatial_merge_size, expected_hidden_size=parser.expected_hidden_size)


class Processor(qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    """vLLM's processor, which passes the metadata on and computes seconds per grid in full precision."""

    def _call_hf_processor(self, prompt: Any, mm_data: Any, mm_kwargs: Any, tok_kwargs: Any) -> Any:
        pairs = mm_data.get("videos")
        if not pairs:
            return super()._call_hf_processor(prompt, mm_data, mm_kwargs, tok_kwargs)
        videos = [video for video, _ in pairs]
        metadata = [
            {"total_num_frames": len(video), **{k: v for k, v in given.items() if k in METADATA_FIELDS}}
            for video, given in pairs
        ]
        mm_data = {**mm_data, "videos": videos, "video_metadata": metadata}
        unsampled = {**mm_kwargs, "do_sample_frames": False}  # verl sampled the frames already
        outputs = super()._call_hf_processor(prompt, mm_data, unsampled, tok_kwargs)
        outputs["second_per_grid_ts"] = self._seconds_per_grid(metadata, mm_kwargs)
        return outputs

    def _seconds_per_grid(self, metadata: list[dict[str, Any]], mm_kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Seconds per temporal grid of each video, as the trainer's processor computes them.

        vLLM casts floats to the model's dtype, which turns 0.7 s into 0.699 s in bfloat16. The trainer's processor
        gives float32, and from the same float32 both sides compute exactly the same positions.
        """
        patch = self.info.get_hf_processor(**mm_kwargs).video_processor.temporal_patch_size
        seconds = torch.tensor([patch / VideoMetadata(**fields).sampled_fps for fields in metadata])
        return torch.tensor([guarded_seconds_per_grid(s) for s in seconds.tolist()], dtype=torch.float64)


def install(models: ModuleType, prefix: str) -> None:
    """Register the processor for a model class of vLLM.

    Args:
        models: vLLM's module with the class.
        prefix: the start of its name, before `ForConditionalGeneration`.
    """
    MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder)(
        getattr(models, f"{prefix}ForConditionalGeneration")
    )
