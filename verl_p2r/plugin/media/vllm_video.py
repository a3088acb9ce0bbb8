# SPDX-License-Identifier: Apache-2.0
"""Keeps a video's frame times on the rollout side: Qwen2.5-VL and Qwen3-VL inside vLLM.

Through vLLM's own registry of multimodal processors we register ours, for two faults of stock vLLM under verl:

- Qwen2.5-VL: verl hands vLLM each video with its metadata, and vLLM's parser throws the metadata away; the Hugging Face
  processor then assumes 24 fps and the temporal positions of the rollout collapse. Can go when vLLM's processor sets
  `video_needs_metadata` and keeps `second_per_grid_ts` in full precision.
- Qwen3-VL: verl sends a prompt in which the trainer's processor has written each temporal grid with its timestamp, and
  vLLM expands the first grid's placeholder to the whole video once more: the rollout sees all timestamps twice, and
  more grids than there are. Can go when verl sends Qwen3-VL prompts with one placeholder for each video.

The code serves vLLM 0.27.1 with transformers 5.10 (CPU) and vLLM 0.24.0 with transformers 5.9.0 (CUDA) as it is. In a
version that it was not tested with it registers nothing: vLLM 0.32 answered every request with a medium with an error.
"""

import re
import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion
from wrapt import register_post_import_hook

from verl_p2r.plugin import TESTED_VLLM, shm_tracker

_TIMESTAMP = re.compile(r"<\d+\.\d seconds>$")


def register() -> None:
    """Entry point `vllm.general_plugins`: run in every vLLM process, acts only where such a model is loaded."""
    import vllm

    shm_tracker.start()  # before vLLM makes its queues and spawns the processes of its engine
    if not _is_tested(vllm.__version__):
        warnings.warn(
            f"verl_p2r leaves vLLM {vllm.__version__} as it is, because it is tested with vLLM {TESTED_VLLM} only. "
            "A server of its own does not need verl_p2r. The rollouts of verl would lose the frame times of videos: "
            f"pip install 'vllm{TESTED_VLLM}' before you train",
            stacklevel=2,
        )
        return
    register_post_import_hook(_on_qwen2_5_vl, "vllm.model_executor.models.qwen2_5_vl")
    register_post_import_hook(_on_qwen3_vl, "vllm.model_executor.models.qwen3_vl")
    register_post_import_hook(_on_qwen3_vl, "vllm.model_executor.models.qwen3_vl_moe")


def _is_tested(version: str) -> bool:
    try:
        return SpecifierSet(TESTED_VLLM).contains(version, prereleases=True)
    except InvalidVersion:  # "dev": a build without tags
        return False


def _on_qwen2_5_vl(qwen) -> None:
    import torch
    from vllm.model_executor.models import qwen2_vl
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from verl_p2r.media.positions import guarded_seconds_per_grid

    class Parser(qwen2_vl.Qwen2VLMultiModalDataParser):
        """Pairs every video with its metadata ({} where the caller gave none), so that both reach the processor and
        the cache key.
        """

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


def _on_qwen3_vl(qwen) -> None:
    from dataclasses import replace

    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import PromptUpdateDetails

    class Processor(qwen.Qwen3VLMultiModalProcessor):
        """Takes a prompt that already spells out its videos' grids as it is, but for the number of placeholders."""

        def _apply_prompt_updates(self, token_ids, mm_prompt_updates):
            pad = self.info.get_hf_config().video_token_id
            videos = mm_prompt_updates.get("video")
            if not videos or not _is_spelled_out(token_ids, pad, self.info.get_tokenizer()):
                return super()._apply_prompt_updates(token_ids, mm_prompt_updates)
            token_ids, spans = _videos_as_sent(token_ids, [update.content.full for update, *_ in videos], pad)
            updates = [
                [replace(update, target=[pad], content=PromptUpdateDetails.select_token_id(span, pad))]
                for (update, *_), span in zip(videos, spans, strict=True)
            ]
            return super()._apply_prompt_updates(token_ids, {**mm_prompt_updates, "video": updates})

    family = "Qwen3VLMoe" if qwen.__name__.endswith("_moe") else "Qwen3VL"
    MULTIMODAL_REGISTRY.register_processor(
        Processor, info=getattr(qwen, f"{family}ProcessingInfo"), dummy_inputs=qwen.Qwen3VLDummyInputsBuilder
    )(getattr(qwen, f"{family}ForConditionalGeneration"))


def _is_spelled_out(token_ids: Sequence[int], pad: int, tokenizer: Any) -> bool:
    """Whether a timestamp stands before the first video placeholder, apart from its `<|vision_start|>`."""
    first = token_ids.index(pad) if pad in token_ids else 0
    return _TIMESTAMP.search(tokenizer.decode(token_ids[max(first - 33, 0) : max(first - 1, 0)])) is not None


def _videos_as_sent(
    token_ids: Sequence[int], expansions: Sequence[Sequence[int]], pad: int
) -> tuple[list[int], list[list[int]]]:
    """Cut the videos out of a prompt that spells out their grids.

    Args:
        token_ids: the prompt; each grid is `<|vision_start|>`, one placeholder or more, `<|vision_end|>`.
        expansions: what vLLM itself would write for each video, for the number of its grids and their placeholders.
        pad: the id of `<|video_pad|>`.

    Returns:
        The prompt with one placeholder instead of each video, from its first grid's start to its last grid's end; and
        what stood there, each grid with all its placeholders.

    Raises:
        ValueError: when the prompt has another number of grids than the videos.
    """
    runs, cursor = [], 0  # first and one past the last of each run of placeholders
    for is_pad, run in groupby(token_ids, key=pad.__eq__):
        length = len(list(run))
        runs += [(cursor, cursor + length)] * is_pad
        cursor += length
    grids = [sum(is_pad for is_pad, _ in groupby(expansion, key=pad.__eq__)) for expansion in expansions]
    if sum(grids) != len(runs):
        raise ValueError(
            f"the prompt holds {len(runs)} temporal grids of video, but its videos have {grids}: the trainer's "
            "processor and the rollout's must sample and resize alike"
        )
    prompt, spans, done = [], [], 0
    for expansion, count in zip(expansions, grids, strict=True):
        ours, runs = runs[:count], runs[count:]
        size = expansion.count(pad) // count
        span, inside = [], ours[0][0] - 1
        prompt += [*token_ids[done:inside], pad]
        for start, stop in ours:
            span += [*token_ids[inside:start], *[pad] * size]
            inside = stop
        done = inside + 1
        spans.append([*span, token_ids[inside]])
    return [*prompt, *token_ids[done:]], spans
