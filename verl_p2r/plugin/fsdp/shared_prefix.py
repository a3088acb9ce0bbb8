# SPDX-License-Identifier: Apache-2.0
"""Shared-prefix training in verl's FSDP engine: a prompt is computed once for all its rollouts in a micro-batch.

verl computes every row whole. With `shared_prefix` in the engine's config the rows of a prompt are packed behind one
copy of it (`verl_p2r/prefix/plan.py`), and the head makes logits of responses only. The results are those of verl's
engine: log-probabilities and entropies row by row, the loss, and gradients.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine.utils import postprocess_batch_func

from verl_p2r.plugin.fsdp.attention import NAME, AttentionPlan, varlen_kernel
from verl_p2r.plugin.fsdp.switch import check_batch, check_engine, check_model
from verl_p2r.plugin.fsdp.vision_inputs import distinct_media, media_rows
from verl_p2r.prefix.plan import PrefixPlan, micro_batches, shared_groups

_PLAN = "p2r_prefix_plan"


class SharedPrefix:
    """Mixin over verl's FSDP engine; see the module."""

    def __init__(self, model_config, engine_config, *args, **kwargs):
        self._shares = bool(engine_config.get("shared_prefix", False))
        if self._shares:
            check_engine(engine_config)
        super().__init__(model_config, engine_config, *args, **kwargs)

    def _build_module(self) -> nn.Module:
        if not self._shares:
            return super()._build_module()
        check_model(self.model_config.hf_config)
        if get_device_name() == "cuda":
            varlen_kernel()  # fail before the weights are loaded
        # With use_remove_padding, verl replaces the attention of Qwen2-VL and Qwen2.5-VL by one without a registry.
        self.use_remove_padding, before = False, self.use_remove_padding
        try:
            module = super()._build_module()
        finally:
            self.use_remove_padding = before
        module.config.get_text_config()._attn_implementation = NAME
        return module

    def _build_lora_module(self, module: nn.Module) -> nn.Module:
        module = super()._build_lora_module(module)
        if self._shares:
            check_model(self.model_config.hf_config, module)
        return module

    def forward_backward_batch(self, data: TensorDict, loss_function: Callable, forward_only: bool = False) -> Any:
        if not self._shares:
            return super().forward_backward_batch(data, loss_function, forward_only)
        check_batch(data)
        group = self.get_data_parallel_group()
        keep_output = tu.get_non_tensor_data(data=data, key="return_model_output", default=False)
        tokens = data["loss_mask"].sum().to(get_device_id())
        dist.all_reduce(tokens, group=group)
        tu.assign_non_tensor(data, sp_size=1, batch_num_tokens=tokens.item(), dp_size=self.get_data_parallel_size())
        packed = _micro_batches(data, group)
        outputs = []
        for n, pieces in enumerate(packed):
            micro_batch = _select(data, pieces)
            last = n == len(packed) - 1
            sync = nullcontext() if forward_only else self._gradient_sync_context(is_last_micro_batch=last)
            grad = torch.no_grad() if forward_only else nullcontext()
            with grad, sync, torch.profiler.record_function(f"micro_batch{n}"):
                loss, info = self.forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)
                if not forward_only:
                    (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                    if not keep_output:
                        info.pop("model_output", None)
            outputs.append(info)
        return _in_the_rows_order(outputs, packed, data)

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._shares:
            return super().prepare_model_inputs(micro_batch)
        plan: PrefixPlan = tu.get_non_tensor_data(data=micro_batch, key=_PLAN, default=None)
        rows = micro_batch["input_ids"].unbind()
        device = rows[0].device
        positions = plan.pack(micro_batch["position_ids"].unbind())
        labels = plan.responses(rows)
        temperature = micro_batch["temperature"]
        scalar = not isinstance(temperature, Tensor)
        each = torch.full((len(rows),), float(temperature), device=device) if scalar else temperature.float()
        sizes = torch.tensor([plan.lengths[row] - plan.prefix[row] for row in plan.order], device=device)
        model_inputs = {
            "input_ids": plan.pack(rows).unsqueeze(0),
            "attention_mask": None,
            "position_ids": positions.unsqueeze(-2),
            "shared_prefix": AttentionPlan(plan, device),
            "vision": self.vision_inputs(micro_batch, plan),
        }
        if tu.get_non_tensor_data(data=micro_batch, key="use_fused_kernels", default=False):
            if not scalar:
                raise ValueError("use_fused_kernels needs one temperature for all rows: set it to False")
            model_inputs |= {"temperature": temperature, "return_dict": True, "shift_labels": labels.unsqueeze(0)}
        return model_inputs, {
            "temperature_is_one": scalar and float(temperature) == 1.0,
            "input_ids_rmpad_rolled": labels,
            "temperature_rmpad": each[plan.order].repeat_interleave(sizes),
            "pad_size": 0,
            "responses": torch.nested.nested_tensor_from_jagged(
                labels, torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
            ),
        }

    def prepare_model_outputs(self, output, output_args, micro_batch: TensorDict, logits_processor_func):
        """Let verl compute its outputs over the responses, then pad each row to its length with zeros in front."""
        if not self._shares:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        plan: PrefixPlan = tu.get_non_tensor_data(data=micro_batch, key=_PLAN, default=None)
        view = micro_batch.exclude("input_ids")
        view["input_ids"] = output_args["responses"]
        tu.assign_non_tensor(view, use_remove_padding=True)
        made = super().prepare_model_outputs(output, output_args, view, logits_processor_func)
        offsets = micro_batch["input_ids"].offsets()
        return {
            name: torch.nested.nested_tensor_from_jagged(torch.cat(plan.unpack(values.values())), offsets)
            for name, values in made.items()
        }


def _sizes(data: TensorDict) -> tuple[list[int], list[int]]:
    """Return prompt and response length of each row; without prompts (SFT), a row's first token is its prefix."""
    lengths = data["input_ids"].offsets().diff().tolist()
    prefix = data["prompts"].offsets().diff().tolist() if "prompts" in data else [1] * len(lengths)
    return prefix, [length - size for length, size in zip(lengths, prefix, strict=True)]


def _micro_batches(data: TensorDict, group: Any) -> list[list[list[int]]]:
    """Pack the rows of this rank; every rank makes as many micro-batches as the rank that needs the most."""
    prefix, suffix = _sizes(data)
    rows = data["input_ids"].unbind()
    prompts = [row[:size] for row, size in zip(rows, prefix, strict=True)]
    groups = shared_groups(prompts, distinct_media(media_rows(data))[1], data["position_ids"].unbind())
    if tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True):
        budget = tu.get_non_tensor_data(data=data, key="max_token_len_per_gpu", default=None)
    else:  # the size of a padded micro-batch
        size = tu.get_non_tensor_data(data=data, key="micro_batch_size_per_gpu", default=1)
        budget = size * max(p + s for p, s in zip(prefix, suffix, strict=True))
    need = torch.tensor(len(micro_batches(groups, prefix, suffix, budget)), device=get_device_id())
    dist.all_reduce(need, op=dist.ReduceOp.MAX, group=group)
    return micro_batches(groups, prefix, suffix, budget, at_least=int(need))


def _select(data: TensorDict, pieces: list[list[int]]) -> TensorDict:
    """Select the rows of a micro-batch in packed order, and attach their plan."""
    micro_batch = tu.index_select_tensor_dict(data, [row for piece in pieces for row in piece])
    prefix, suffix = _sizes(micro_batch)
    count, groups = 0, []
    for piece in pieces:
        groups.append(range(count, count + len(piece)))
        count += len(piece)
    plan = PrefixPlan(groups, prefix, [p + s for p, s in zip(prefix, suffix, strict=True)])
    tu.assign_non_tensor(micro_batch, **{_PLAN: plan})
    return micro_batch


def _in_the_rows_order(outputs: list[Any], packed: list[list[list[int]]], data: TensorDict) -> Any:
    """Run verl's post-processing, which restores the order of the rows for dynamic batches only."""
    order = [[row for piece in pieces for row in piece] for pieces in packed]
    dynamic = tu.get_non_tensor_data(data=data, key="use_dynamic_bsz", default=True)
    tu.assign_non_tensor(data, use_dynamic_bsz=True)
    try:
        return postprocess_batch_func(output_lst=outputs, indices=order, data=data)
    finally:
        tu.assign_non_tensor(data, use_dynamic_bsz=dynamic)
