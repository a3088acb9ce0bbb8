# SPDX-License-Identifier: Apache-2.0
"""verl's own FSDP engine and ours on a CPU, and batches of rollouts as verl's trainer hands them over."""

from functools import partial
from pathlib import Path

import make_model
import pytest
import qwen_models
import torch
from hydra import compose, initialize_config_module
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils import torch_functional
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.config import FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import response_from_nested

from verl_p2r.media.families import Time, family_of_model
from verl_p2r.media.positions import mrope_positions
from verl_p2r.plugin.cpu.engine import CPUFSDPEngine
from verl_p2r.plugin.fsdp import log_probs


class StockEngine(FSDPEngineWithLMHead):
    """verl's engine without anything of ours but what a CPU needs."""

    def _build_fsdp_module(self, module):
        config = self.engine_config
        forward_only, config.forward_only = config.forward_only, False
        try:
            return super()._build_fsdp_module(module)
        finally:
            config.forward_only = forward_only

    def prepare_model_outputs(self, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_functional, "logprobs_from_logits_v2", log_probs.verls_log_probs)
            return super().prepare_model_outputs(*args, **kwargs)


def save_model(folder: Path, family: str, **text) -> Path:
    """Write a tiny model with three layers, so that deepstack features meet a layer that has none."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    if family == "qwen2_5_vl":
        make_model.save(folder, seed=0)
    else:
        qwen_models.save(folder, family)
    config = AutoConfig.from_pretrained(folder)
    shape = {"num_hidden_layers": 3, "initializer_range": 0.1, **text}
    kinds = getattr(config.text_config, "layer_types", None)
    if "layer_types" not in shape and kinds is not None:
        shape["layer_types"] = [kinds[layer % len(kinds)] for layer in range(shape["num_hidden_layers"])]
    for key, value in shape.items():
        setattr(config.text_config, key, value)
    if family == "qwen3_vl":
        config.vision_config.depth, config.vision_config.deepstack_visual_indexes = 3, [0, 1]
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def engine_config(*overrides: str, name: str = "p2r_sft_cpu"):
    """The config of an engine, by default on the CPU."""
    with initialize_config_module("verl_p2r.config", version_base=None):
        config = compose(name, list(overrides))
    return omega_conf_to_dataclass(config.engine)


def build(folder: Path, cls=CPUFSDPEngine, *overrides: str, config: str = "p2r_sft_cpu", **model):
    """verl's engine as its worker makes it."""
    plain = {
        "use_remove_padding": False,
        "enable_gradient_checkpointing": False,
        "override_config": {"attn_implementation": "sdpa"},
    }
    engine = cls(
        model_config=HFModelConfig(path=str(folder), **{**plain, **model}),
        engine_config=engine_config(*overrides, name=config),
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, lr_warmup_steps=0, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


SHARED = "engine.shared_prefix=True"
FSDP1 = ("engine.strategy=fsdp", "engine.use_orig_params=True")


class Rollouts:
    """Random rows for a model: groups of responses to prompts with text, an image, videos, or both.

    Args:
        config: the model's config.
        seed: seed of the random numbers.
    """

    def __init__(self, config, seed: int = 7):
        self.config, self.rows = config, []
        self.random = torch.Generator().manual_seed(seed)
        vision = config.vision_config
        self.merge = vision.spatial_merge_size
        self.width = vision.patch_size**2 * 3 * vision.temporal_patch_size
        self.marks = [config.vision_start_token_id, config.vision_end_token_id]
        special = {config.image_token_id, config.video_token_id, *self.marks}
        vocabulary = config.get_text_config().vocab_size
        self.words = torch.tensor([i for i in range(10, vocabulary) if i not in special])

    def text(self, count: int) -> torch.Tensor:
        return self.words[torch.randint(len(self.words), (count,), generator=self.random)]

    def _medium(self, kind: str, grid) -> tuple[torch.Tensor, list[list[int]]]:
        """Tokens of a medium in a prompt, and the grids that its positions come from."""
        t, h, w = grid
        token = self.config.image_token_id if kind == "image" else self.config.video_token_id
        stills = family_of_model(self.config.model_type).time is Time.TEXT and kind == "video"
        frames = [(1, h, w)] * t if stills else [(t, h, w)]
        parts = []
        for frame in frames:
            tokens = torch.full((frame[0] * h * w // self.merge**2,), token)
            parts += [self.text(2), torch.tensor(self.marks[:1]), tokens, torch.tensor(self.marks[1:])]
        return torch.cat(parts), [list(frame) for frame in frames]

    def group(self, responses, *media: tuple[str, tuple[int, int, int]], text: int = 9) -> "Rollouts":
        """Add the rollouts of one prompt.

        Args:
            responses: the length of each.
            media: (kind, grid) of each medium of the prompt.
            text: number of the prompt's words after its media.
        """
        parts, grids, inputs = [self.text(5)], [], {}
        for kind, grid in media:
            parts.append(self._add_medium(kind, grid, grids, inputs))
        prompt = torch.cat([*parts, self.text(text)])
        for size in responses:
            self._row(prompt, self.text(size), grids, _joined(inputs))
        return self

    def turns(self, sizes, kind: str, grid: tuple[int, int, int]) -> "Rollouts":
        """Add rollouts of the last prompt in which a tool shows another medium between two turns.

        Args:
            sizes: for each rollout, the number of words of both turns together.
            kind: `image` or `video`.
            grid: grid of the medium.
        """
        last = self.rows[-1]
        for size in sizes:
            grids, inputs = list(last["grids"]), {name: [values] for name, values in last["media"].items()}
            shown = self._add_medium(kind, grid, grids, inputs)
            response = torch.cat([self.text(size // 2), shown, self.text(size - size // 2)])
            self._row(last["prompts"], response, grids, _joined(inputs))
            self.rows[-1]["response_mask"][size // 2 : size // 2 + len(shown)] = 0  # in the loss mask as well
        return self

    def _add_medium(self, kind, grid, grids, inputs) -> torch.Tensor:
        tokens, of_medium = self._medium(kind, grid)
        grids += of_medium
        suffix = "" if kind == "image" else "_videos"
        pixels = torch.randn(grid[0] * grid[1] * grid[2], self.width, generator=self.random)
        inputs.setdefault(f"pixel_values{suffix}", []).append(pixels)
        inputs.setdefault(f"{kind}_grid_thw", []).append(torch.tensor([grid]))
        return tokens

    def _row(self, prompt, response, grids, inputs) -> None:
        ids, size = torch.cat([prompt, response]), len(response)
        tokens = [self.config.image_token_id, self.config.video_token_id]
        vision = mrope_positions(ids, grids, [2.0] * len(grids), placeholder_ids=tokens, merge_size=self.merge)
        mask = torch.ones(size, dtype=torch.int64)
        if size > 12:
            mask[4:8] = 0  # another turn's words
        noise = [torch.randn(size, generator=self.random) * 0.1 - 5 for _ in range(2)]
        self.rows.append(
            {
                "prompts": prompt,
                "responses": response,
                "input_ids": ids,
                "response_mask": mask,
                "loss_mask": mask,
                "position_ids": torch.cat([torch.arange(len(ids))[None], vision]),
                "old_log_probs": noise[0],
                "ref_log_prob": noise[1],
                "advantages": torch.randn(1, generator=self.random).expand(size).clone(),
                "rollout_is_weights": torch.rand(size, generator=self.random) + 0.5,
                "media": inputs,
                "grids": grids,
            }
        )

    def shuffled(self) -> "Rollouts":
        order = torch.randperm(len(self.rows), generator=self.random).tolist()
        self.rows = [self.rows[row] for row in order]
        return self

    def on_policy(self, log_probs: torch.Tensor) -> "Rollouts":
        """Take a policy's log-probabilities as the old ones and the reference's.

        The ratio is then 1, where the loss has no clip. Elsewhere rounding decides what is clipped, and gradients of
        equally exact engines differ by more than rounding.

        Args:
            log_probs: those of all responses, one after another, as `infer` returns them.
        """
        for row, of_row in zip(self.rows, log_probs.split([len(row["responses"]) for row in self.rows]), strict=True):
            row["old_log_probs"], row["ref_log_prob"] = of_row.clone(), of_row.clone()
        return self

    def batch(self, rows=None, total: int | None = None, **settings):
        """A batch of verl's; by default its rows are one micro-batch."""
        rows = self.rows if rows is None else rows
        tensors = {
            key: tu.nested_tensor_from_tensor_list([row[key] for row in rows], ragged_idx=rows[0][key].dim())
            for key in rows[0]
            if key not in ("media", "grids")
        }
        tensors["multi_modal_inputs"] = [{k: v.clone() for k, v in row["media"].items()} for row in rows]
        common = {
            "use_remove_padding": False,
            "use_dynamic_bsz": False,
            "micro_batch_size_per_gpu": len(rows),
            "use_fused_kernels": False,
            "temperature": 1.0,
            "pad_mode": DatasetPadMode.NO_PADDING,
            "calculate_entropy": True,
            "global_batch_size": total or len(rows),
        }
        settings = {**common, **settings}
        of_rows = {name: value for name, value in settings.items() if isinstance(value, torch.Tensor)}
        common = {name: value for name, value in settings.items() if name not in of_rows}
        return tu.get_tensordict(tensor_dict={**tensors, **of_rows}, non_tensor_dict=common)


def _joined(inputs: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat(values) for name, values in inputs.items()}


def mixed_rollouts(config) -> Rollouts:
    """Ragged groups (rollouts were lost) of every kind of prompt, a padding row, in random order."""
    rollouts = Rollouts(config)
    rollouts.group([17, 5, 1, 30, 13], ("video", (4, 8, 8)))
    rollouts.group([9, 21, 14], ("video", (2, 8, 12)), text=4)
    rollouts.group([11, 16], ("image", (1, 8, 8)), ("video", (2, 4, 4)), ("image", (1, 4, 8)))
    rollouts.group([12, 3])
    rollouts.group([1], text=122)  # as verl pads a batch
    return rollouts.shuffled()


def uneven_rollouts(config) -> Rollouts:
    """Ragged groups of every kind; the first half has the long clips and needs more micro-batches."""
    made = Rollouts(config)
    made.group([20, 9, 14], ("video", (4, 8, 8))).group([13, 6], ("video", (4, 8, 8)), ("image", (1, 4, 4)))
    return made.group([5, 6], ("image", (1, 4, 8))).group([7, 3]).group([1], text=60)


def loss_config(folder: Path, *overrides: str):
    """The actor's config, whose loss has an entropy term and a KL term."""
    with initialize_config_module("verl_p2r.config", version_base=None):
        rl = compose(
            "p2r_ppo_cpu",
            [
                f"actor_rollout_ref.model.path={folder}",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
                "actor_rollout_ref.actor.entropy_coeff=0.01",
                "actor_rollout_ref.actor.use_kl_loss=True",
                *overrides,
            ],
        )
    return omega_conf_to_dataclass(rl.actor_rollout_ref.actor)


def infer(engine, data) -> dict[str, torch.Tensor]:
    """Log-probabilities and entropies of all responses, one after another."""
    mask = data["response_mask"]
    with engine.eval_mode():
        made = engine.infer_batch(data, loss_function=None)["model_output"]
    return {name: torch.cat(response_from_nested(value.cpu(), mask).unbind()) for name, value in made.items()}


def train(engine, data, config) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradient of each parameter that has one."""
    with engine.train_mode():
        engine.optimizer_zero_grad()
        output = engine.forward_backward_batch(data, partial(ppo_loss, config=config))
        grads = {}
        for name, parameter in engine.module.named_parameters():
            if (grad := parameter.grad) is not None:
                grads[name.replace("_fsdp_wrapped_module.", "")] = getattr(
                    grad, "full_tensor", lambda g=grad: g
                )().clone()
        engine.optimizer_zero_grad()
    return sum(output["loss"]), grads


def worst(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> float:
    """Relative difference of the gradient of the worst parameter; those that are zero in theory are left out."""
    assert set(ours) == set(stock)
    norm = torch.stack([grad.norm() for grad in stock.values()]).norm()
    return max(
        ((ours[name] - grad).norm() / grad.norm()).item() for name, grad in stock.items() if grad.norm() > 1e-6 * norm
    )


class TowerCalls:
    """Counts the calls of an engine's vision tower, and the patches in them."""

    def __init__(self, engine):
        self.calls, self.patches = 0, 0
        [tower] = [m for n, m in engine.module.named_modules() if n.rpartition(".")[2] == "visual"]
        tower.register_forward_pre_hook(self._count)

    def _count(self, _module, inputs):
        self.calls += 1
        self.patches += len(inputs[0])


def unpatch_fused(engine) -> None:
    """Give the class of a model its forward back, which verl replaced for every engine of the process."""
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    apply_monkey_patch(model=engine.module, use_remove_padding=False, use_fused_kernels=False)
