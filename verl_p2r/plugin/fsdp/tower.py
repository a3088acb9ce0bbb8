# SPDX-License-Identifier: Apache-2.0
"""One call of the vision tower for each micro-batch, whatever media are in it.

verl 0.9.1 calls the tower once for images and once more for videos, so that FSDP ranks with other media run another
number of collectives, and on a micro-batch without media (padding rows are text) it crashes for Qwen2-VL and Qwen2.5-VL
with transformers 5. It also calls the tower on every row, though the rollouts of a prompt share their pixels. Here the
distinct media of a micro-batch go through the tower in one call, and a micro-batch without media calls it on one blank
image whose features are added with weight 0.
Can go when verl's forward does the same.
"""

from types import MethodType
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from verl.utils.transformers_compat import unpack_visual_output

from verl_p2r.media.families import family_of_model
from verl_p2r.plugin.fsdp.vision_inputs import MicroBatchMedia, VisionInputs, media_rows

_BLANK = [[1, 4, 4]]  # grid (t, h, w) of the image that stands in for missing media


class OneTowerCall:
    """Mixin over verl's FSDP engine; see the module."""

    def _build_module(self) -> nn.Module:
        module = super()._build_module()
        family = family_of_model(module.config.model_type)
        self._one_call = family is not None and family.one_tower_call
        if self._one_call:
            module.model.forward = MethodType(_base_forward, module.model)  # this model's, not its class's
        return module

    def prepare_model_inputs(self, micro_batch: TensorDict):
        if not self._one_call:
            return super().prepare_model_inputs(micro_batch)
        rows = [row.cpu() for row in micro_batch["input_ids"].unbind()]
        media = MicroBatchMedia(rows, media_rows(micro_batch), self.model_config.hf_config)
        text = micro_batch.exclude("multi_modal_inputs")
        model_inputs, output_args = super().prepare_model_inputs(text)
        model_inputs["vision"] = media.inputs(torch.cat(media.places), micro_batch["input_ids"].device)
        return model_inputs, output_args


def _base_forward(self: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any):
    """Forward of a Qwen-VL model below its head, as verl patches it, with the vision tower called once.

    Args:
        input_ids: Shape: (B, L) or (1, packed tokens).
        attention_mask: Shape: (B, L), or None for a packed sequence.
        vision: what the engine prepared; without it, somebody else calls, and verl's own forward answers.
        shared_prefix: the plan of a packed micro-batch: hidden states are given where they predict a response.
    """
    vision = kwargs.pop("vision", None)
    if vision is None:
        return type(self).forward(self, input_ids, attention_mask=attention_mask, **kwargs)
    for name in ("labels", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        kwargs.pop(name, None)
    embeds = self.get_input_embeddings()(input_ids)
    features, deepstack = _call_tower(self, vision, embeds)
    if vision.pixels is None:
        embeds = embeds + 0.0 * sum(part.sum() for part in (features, *deepstack)).to(embeds.dtype)
    else:
        mask = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        chosen = features.to(embeds.dtype).index_select(0, vision.index)
        embeds = embeds.masked_scatter(mask.unsqueeze(-1), chosen)
        if deepstack:
            kwargs["visual_pos_masks"] = mask
            kwargs["deepstack_visual_embeds"] = [part.index_select(0, vision.index) for part in deepstack]
    kwargs |= {"input_ids": None, "inputs_embeds": embeds, "attention_mask": attention_mask}  # PEFT names some, too
    output = self.language_model(**kwargs)
    if (plan := kwargs.get("shared_prefix")) is not None:
        output.last_hidden_state = plan.predicting(output.last_hidden_state)
    return output


def _call_tower(model: nn.Module, vision: VisionInputs, embeds: Tensor) -> tuple[Tensor, list[Tensor]]:
    pixels, grids = vision.pixels, vision.grids
    if pixels is None:
        config = model.config.vision_config
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        grids = torch.tensor(_BLANK, device=embeds.device)
        pixels = embeds.new_zeros(int(grids.prod()), width)
    pixels = pixels.to(embeds.device).type(model.visual.dtype)
    features, deepstack = unpack_visual_output(model.visual(pixels, grid_thw=grids))
    return features, list(deepstack or [])
