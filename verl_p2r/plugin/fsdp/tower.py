# SPDX-License-Identifier: Apache-2.0
"""At most one call of the vision tower for each micro-batch, whatever media are in it.

verl 0.9.1 calls the tower once for images and once more for videos, so FSDP ranks with different media run different
numbers of collectives. On a micro-batch without media (padding rows are text) it crashes for Qwen2-VL and Qwen2.5-VL
with transformers 5. It also calls the tower on every row, although the rollouts of a prompt share their pixels. Here
the distinct media of a micro-batch go through the tower in one call, and a micro-batch without media calls it on one
blank image whose features are added with weight 0.
Remove this module when verl's forward does the same.
"""

from types import MethodType
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from verl.utils.transformers_compat import unpack_visual_output
from verl.utils.ulysses import get_ulysses_sequence_parallel_group

from verl_p2r.media.families import family_of_model
from verl_p2r.plugin.fsdp.tower_split import run_split
from verl_p2r.plugin.fsdp.vision_inputs import MicroBatchMedia, VisionInputs, media_rows
from verl_p2r.prefix.plan import PrefixPlan

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
        text = micro_batch.exclude("multi_modal_inputs")
        model_inputs, output_args = super().prepare_model_inputs(text)
        model_inputs["vision"] = self.vision_inputs(micro_batch)
        return model_inputs, output_args

    def vision_inputs(self, micro_batch: TensorDict, plan: PrefixPlan | None = None) -> VisionInputs:
        """Find the media of a micro-batch and where their features belong.

        Args:
            micro_batch: verl's.
            plan: how its rows are packed; None when they follow one another whole.
        """
        rows = [row.cpu() for row in micro_batch["input_ids"].unbind()]
        media = MicroBatchMedia(rows, media_rows(micro_batch), self.model_config.hf_config)
        places = torch.cat(media.places) if plan is None else plan.pack(media.places)
        index = places[places >= 0].to(micro_batch["input_ids"].device)
        return self.make_vision_inputs(media, index)

    def make_vision_inputs(self, media: MicroBatchMedia, index: Tensor) -> VisionInputs:
        """Decide what the tower computes: here all of it. Arguments as of `VisionInputs`."""
        return VisionInputs(media.sets, index)


def _base_forward(self: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any):
    """Run a Qwen-VL model below its head as verl patches it, but with one call of the vision tower.

    Args:
        self: the model.
        input_ids: Shape: (B, L) or (1, packed tokens).
        attention_mask: Shape: (B, L), or None for a packed sequence.
        **kwargs: `vision`, what the engine prepared; without it the caller is not our engine, and verl's own forward
            answers. `shared_prefix`, the plan of a packed micro-batch; then only hidden states that predict a
            response are returned.
    """
    vision = kwargs.pop("vision", None)
    if vision is None:
        return type(self).forward(self, input_ids, attention_mask=attention_mask, **kwargs)
    for name in ("labels", "pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        kwargs.pop(name, None)
    embeds = self.get_input_embeddings()(input_ids)
    if vision.calls_tower:
        missing = vision.missing()
        made = _call_tower(self, missing or _blank(self, embeds), embeds.device)
        if missing is None:
            embeds = embeds + 0.0 * sum(part.sum() for part in made).to(embeds.dtype)
        else:
            vision.receive(made)
    if vision.sets:
        features, *deepstack = vision.at_placeholders(embeds.device)
        mask = (input_ids == self.config.image_token_id) | (input_ids == self.config.video_token_id)
        embeds = embeds.masked_scatter(mask.unsqueeze(-1), features.to(embeds.dtype))
        if deepstack:
            kwargs |= {"visual_pos_masks": mask, "deepstack_visual_embeds": deepstack}
    kwargs |= {"input_ids": None, "inputs_embeds": embeds, "attention_mask": attention_mask}  # PEFT names some, too
    output = self.language_model(**kwargs)
    if (plan := kwargs.get("shared_prefix")) is not None:
        output.last_hidden_state = plan.predicting(output.last_hidden_state)
    return output


def _blank(model: nn.Module, embeds: Tensor) -> tuple[Tensor, Tensor]:
    config = model.config.vision_config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    grids = torch.tensor(_BLANK)
    return embeds.new_zeros(int(grids.prod()), width), grids


def _call_tower(model: nn.Module, inputs: tuple[Tensor, Tensor], device: Any) -> list[Tensor]:
    """Run the tower on patches and grids; return the features, and those for deepstack."""
    pixels, grids = inputs

    def tower(pixels: Tensor, grids: Tensor) -> list[Tensor]:
        features, deepstack = unpack_visual_output(
            model.visual(pixels.to(device).type(model.visual.dtype), grid_thw=grids.to(device))
        )
        return [features, *(deepstack or [])]

    group = get_ulysses_sequence_parallel_group()
    return tower(pixels, grids) if group is None else run_split(tower, pixels, grids, group)
