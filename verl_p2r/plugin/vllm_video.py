# SPDX-License-Identifier: Apache-2.0
"""Keeps a video's frame times on the rollout side: Qwen2.5-VL inside vLLM.

verl hands vLLM each video with its metadata, and vLLM's Qwen2-VL parser throws the metadata away; the Hugging Face
processor then assumes 24 fps and the temporal positions of the rollout collapse. Through vLLM's own registry of
multimodal processors we register one that keeps it. Run on vLLM 0.27.1 (CPU); 0.24.0 (CUDA) has the same doors in its
source. Can go when vLLM's Qwen2.5-VL processor sets `video_needs_metadata` and keeps `second_per_grid_ts` in full
precision.
"""

from wrapt import register_post_import_hook


def register() -> None:
    """Entry point `vllm.general_plugins`: run in every vLLM process, acts only where Qwen2.5-VL is loaded."""
    register_post_import_hook(_on_qwen2_5_vl, "vllm.model_executor.models.qwen2_5_vl")


def _on_qwen2_5_vl(qwen) -> None:
    import torch
    from vllm.model_executor.models import qwen2_vl
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from verl_p2r.positions import guarded_seconds_per_grid

    class Parser(qwen2_vl.Qwen2VLMultiModalDataParser):
        """Pairs every video with its metadata ({} where the caller gave none), so that both reach the processor and
        the cache key."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.video_needs_metadata = True

        def _get_video_with_metadata(self, video):
            video, metadata = super()._get_video_with_metadata(video)
            return video, metadata or {}

    class Info(qwen.Qwen2_5_VLProcessingInfo):
        def get_data_parser(self):
            parser = super().get_data_parser()
            return Parser(parser._spatial_merge_size, expected_hidden_size=parser.expected_hidden_size)

    class Processor(qwen.Qwen2_5_VLMultiModalProcessor):
        def _call_hf_processor(self, prompt, mm_data, mm_kwargs, tok_kwargs):
            pairs = mm_data.get("videos")
            if not pairs:
                return super()._call_hf_processor(prompt, mm_data, mm_kwargs, tok_kwargs)
            videos = [video for video, _ in pairs]
            metadata = [
                {"total_num_frames": len(video), **{k: v for k, v in given.items() if k in METADATA_FIELDS}}
                for video, given in pairs
            ]
            mm_data = {**mm_data, "videos": videos, "video_metadata": metadata}
            sampled = {**mm_kwargs, "do_sample_frames": False}  # the frames that came are the frames wanted
            outputs = super()._call_hf_processor(prompt, mm_data, sampled, tok_kwargs)
            # vLLM casts floats to the model's dtype: 0.7 s would be 0.699 in bfloat16. The trainer's processor gives
            # float32; from the same float32 both sides compute the same positions to the last bit.
            patch = self.info.get_hf_processor(**mm_kwargs).video_processor.temporal_patch_size
            seconds = torch.tensor([patch / VideoMetadata(**fields).sampled_fps for fields in metadata])
            outputs["second_per_grid_ts"] = torch.tensor(
                [guarded_seconds_per_grid(s) for s in seconds.tolist()], dtype=torch.float64
            )
            return outputs

    from dataclasses import fields

    from transformers.video_utils import VideoMetadata

    METADATA_FIELDS = {field.name for field in fields(VideoMetadata)}
    MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder)(
        qwen.Qwen2_5_VLForConditionalGeneration
    )
