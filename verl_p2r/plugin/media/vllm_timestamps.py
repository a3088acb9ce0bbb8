# SPDX-License-Identifier: Apache-2.0
"""vLLM's processor for families with `Time.TEXT` (Qwen3-VL), with prompts from verl kept as they are.

verl sends a prompt in which the trainer's processor has written a timestamp before each temporal grid. Stock vLLM
expands the placeholder of the first grid to the whole video once more, so that the model sees all timestamps twice and
too many grids. Remove this module when verl sends prompts with one placeholder for each video.

Imported by the hook in `vllm_video.py` once vLLM has loaded its model class.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

from vllm.model_executor.models import qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptUpdateDetails

from verl_p2r.plugin.media import grid_spans


class Processor(qwen3_vl.Qwen3VLMultiModalProcessor):
    """vLLM's processor, which only completes the placeholders of a prompt that has its timestamps already."""

    def _apply_prompt_updates(self, token_ids: Any, mm_prompt_updates: Any) -> Any:
        pad = self.info.get_hf_config().video_token_id
        videos = mm_prompt_updates.get("video")
        if not videos or not grid_spans.has_timestamps(token_ids, pad, self.info.get_tokenizer()):
            return super()._apply_prompt_updates(token_ids, mm_prompt_updates)
        expansions = [update.content.full for update, *_ in videos]
        token_ids, spans = grid_spans.cut_out_videos(token_ids, expansions, pad)
        updates: Any = [
            [replace(update, target=[pad], content=PromptUpdateDetails.select_token_id(span, pad))]
            for (update, *_), span in zip(videos, spans, strict=True)
        ]
        return super()._apply_prompt_updates(token_ids, {**mm_prompt_updates, "video": updates})


def install(models: ModuleType, prefix: str) -> None:
    """Register the processor for a model class of vLLM.

    Args:
        models: vLLM's module with the class.
        prefix: the start of its name, before `ForConditionalGeneration`.
    """
    MULTIMODAL_REGISTRY.register_processor(
        Processor, info=getattr(models, f"{prefix}ProcessingInfo"), dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
    )(getattr(models, f"{prefix}ForConditionalGeneration"))
