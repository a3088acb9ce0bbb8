# SPDX-License-Identifier: Apache-2.0
"""Time and weigh the training passes of a step on one GPU: verl's engine against ours, with and without shared prefix.

    python benchmarks/shared_prefix_gpu.py [--quick] [--record] [--size 3b|7b] [--shapes 16x128 32x256 64x256]

The sides are verl's FSDP2 engine (`stock`), ours on whole rows, which sends each distinct clip of a micro-batch through
the vision tower once (`whole`), and ours with the shared prefix (`shared`). All have the same random Qwen2.5-VL of the
published size, gradient checkpointing, bfloat16 arithmetic, and 16,384 tokens a micro-batch. The rows are those of one
prompt with a clip: 300 tokens of text and 8 rollouts of 600 tokens. A step has three passes: old log-probabilities with
entropies, the reference's log-probabilities, and the update, here without the optimizer, which costs all sides the
same. One engine is on the GPU at a time; the faster of two rounds after a warm-up counts.

With flash-attn installed, verl's engine removes padding and uses flash-attn's kernels, and so does ours. Without it
verl pads rows, here of one length and so without padding, and uses torch's attention. The vision tower then gets
torch's variable-length kernel on all sides: transformers would call torch's attention for each window of each frame.
All sides then have our log-probabilities (`verl_p2r/plugin/fsdp/log_probs.py`): verl's take longer than the model.

Errors are those of two prompts with three rollouts each, against verl's engine in float32 (3b only). `--quick` takes
four layers and the first shape, without errors. Prints a table; the last line is a JSON object with these figures.
The first four are there for each shape (frames x tokens of two frames), for example train_ratio_3b_16x128:

    train_ratio_…     how many times faster the shared prefix is than verl's engine, over the three passes
    update_ratio_…    the same for the update alone
    whole_ratio_…     how many times faster ours on whole rows is, over the three passes
    memory_ratio_…    peak memory of the update, shared over stock, weights and gradients included
    logp_error_ratio  root-mean-square error of the log-probabilities, shared over stock
    grad_error_ratio  relative error of all gradients together, shared over stock
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tests/plugin/fsdp", "tests/plugin", "examples/quickstart", "examples")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]

import verl_p2r.plugin  # noqa: F401, E402, I001  torch and torchvision made to fit before anything imports them

import prefix_engines as engines  # noqa: E402
import recording  # noqa: E402
import smoke_gpu  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402
from transformers.modeling_utils import AttentionInterface  # noqa: E402
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.utils.losses import ppo_loss  # noqa: E402

from verl_p2r.plugin.fsdp.engine import FreezableFSDPEngine  # noqa: E402

ROLLOUTS, TEXT, RESPONSE, BUDGET = 8, 300, 600, 16384  # rows, tokens, tokens, tokens
SHAPES = {"16x128": (8, 16, 32), "32x256": (16, 32, 32), "64x256": (32, 32, 32)}  # grids: pairs of frames, patches
SIDES = {
    "stock": (FSDPEngineWithLMHead, ()),
    "shared": (FreezableFSDPEngine, (engines.SHARED,)),
    "whole": (FreezableFSDPEngine, ()),
}
SIZES: dict[str, dict[str, Any]] = {
    "3b": {},
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}
EXACT = "++engine.mixed_precision={param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
DTYPES = {"3b": "fp32", "7b": "bf16"}  # weights and gradients; in float32 the 7B does not fit on 80 GB
PLAIN_ATTENTION = Qwen2_5_VLAttention.forward
FLASH = importlib.util.find_spec("flash_attn") is not None
TOWER = "torch_varlen_flash"  # a name with "flash" gets the boundaries of all windows in one call


def tower_attention(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs) -> tuple[Tensor, None]:
    """Attend within the windows of a vision tower: torch's variable-length kernel, or in float32 one after another."""
    boundaries = kwargs["cu_seq_lens_q"]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (patches, heads, width)
    if query.dtype is torch.float32:
        sizes = boundaries.diff().tolist()
        windows = zip(*(x.transpose(0, 1).split(sizes, 1) for x in (q, k, v)), strict=True)
        made = torch.cat([F.scaled_dot_product_attention(*window) for window in windows], 1).transpose(0, 1)
    else:
        from torch.nn.attention.varlen import varlen_attn

        longest = int(kwargs["max_length_q"])
        made = varlen_attn(q, k, v, boundaries, boundaries, longest, longest)
    return made.unsqueeze(0), None


AttentionInterface.register(TOWER, tower_attention)


def write_model(folder: Path, size: str, layers: int | None) -> Path:
    """Write a random Qwen2.5-VL of a published size and its processor, without a processor's true vocabulary."""
    processor = smoke_gpu.processor_3b()
    config = smoke_gpu.config_3b(processor.tokenizer)
    text = config.text_config
    text.update(SIZES[size])
    if size == "7b":
        config.tie_word_embeddings = text.tie_word_embeddings = False
        config.vision_config.out_hidden_size = text.hidden_size
    if layers:
        text.num_hidden_layers = config.vision_config.depth = layers
        config.vision_config.fullatt_block_indexes = [layers - 1]
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{model.num_parameters() / 1e9:.2f} B parameters", flush=True)
    return folder


def build(folder: Path, side: str, size: str, exact: bool = False) -> Any:
    """Build an engine as verl's worker does, in float32 throughout if `exact`."""
    cls, overrides = SIDES[side]
    flash = FLASH and not exact  # its kernels have half precision only
    if exact:
        overrides = (*overrides, EXACT)
    engine = engines.build(
        folder,
        cls,
        "engine.strategy=fsdp2",
        f"engine.model_dtype={DTYPES[size]}",
        *overrides,
        config="p2r_sft",
        use_remove_padding=flash,
        enable_gradient_checkpointing=True,
        override_config={"attn_implementation": "flash_attention_2" if flash else "sdpa"},
    )
    if not flash:
        [tower] = [module for name, module in engine.module.named_modules() if name.rpartition(".")[2] == "visual"]
        tower.config._attn_implementation = TOWER
    return engine


def free(engine: Any) -> None:
    """Give an engine's memory back, and the model's class its attention, which verl replaces to remove padding."""
    Qwen2_5_VLAttention.forward = PLAIN_ATTENTION
    vars(engine).clear()  # its checkpoint manager holds the model, too
    gc.collect()
    torch.cuda.empty_cache()


def batch_of(rollouts: Any, **more: Any) -> Any:
    """Return the rows as verl's worker gets them, in host memory."""
    return rollouts.batch(use_dynamic_bsz=True, max_token_len_per_gpu=BUDGET, **more)


def update(engine: Any, batch: Any, loss: Any, keep: bool = False) -> dict[str, Tensor]:
    """Run the forward and backward passes; return the gradients in host memory if `keep`."""
    with engine.train_mode():
        engine.optimizer_zero_grad()
        engine.forward_backward_batch(batch, partial(ppo_loss, config=loss))
        with_grad = {name: p.grad for name, p in engine.module.named_parameters() if p.grad is not None}
        return {name: grad.full_tensor().cpu() for name, grad in with_grad.items()} if keep else {}


def passes(engine: Any, rollouts: Any, loss: Any) -> dict[str, float]:
    """Run the three passes; return their seconds and the peak memory of the update in GiB."""
    batch = partial(batch_of, rollouts, use_remove_padding=engine.use_remove_padding)
    work = {
        "old": partial(engines.infer, engine, batch()),
        "reference": partial(engines.infer, engine, batch(calculate_entropy=False)),
        "update": partial(update, engine, batch(calculate_entropy=False), loss),
    }
    seconds = {}
    for name, run in work.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - started
    engine.lr_scheduler_step()  # verl's end of a step
    return {**seconds, "all": sum(seconds.values()), "GiB": torch.cuda.max_memory_allocated() / 2**30}


def numbers(engine: Any, rollouts: Any, loss: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the log-probabilities of all responses and, in host memory, all gradients."""
    batch = partial(batch_of, rollouts, use_remove_padding=engine.use_remove_padding)
    log_probs = engines.infer(engine, batch())["log_probs"].float()
    return log_probs, update(engine, batch(calculate_entropy=False), loss, keep=True)


def errors(found: tuple[Tensor, dict[str, Tensor]], exact: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """Return the root-mean-square error of log-probabilities and the relative error of all gradients together."""
    assert set(found[1]) == set(exact[1])
    off = norm = 0.0
    for name, grad in exact[1].items():
        grad = grad.cuda()
        off += (found[1][name].cuda() - grad).square().sum().item()
        norm += grad.square().sum().item()
    return (found[0] - exact[0]).square().mean().sqrt().item(), (off / norm) ** 0.5


def measure_errors(folder: Path, model_config: Any, loss: Any) -> dict[str, float]:
    """Compare stock and shared prefix with verl's engine in float32, on few rows."""
    rollouts = engines.Rollouts(model_config)
    for responses in ([200, 170, 230], [210, 190, 150]):
        rollouts.group(responses, ("video", SHAPES["16x128"]), text=TEXT - 9)
    made: list[tuple[Tensor, dict[str, Tensor]]] = []
    for side, in_float32 in (("stock", True), ("shared", False), ("stock", False)):
        engine = build(folder, side, "3b", in_float32)
        if in_float32:
            batch = batch_of(rollouts, use_remove_padding=engine.use_remove_padding)
            rollouts.on_policy(engines.infer(engine, batch)["log_probs"])
        made.append(numbers(engine, rollouts, loss))
        free(engine)
    shared, stock = (errors(found, made[0]) for found in made[1:])
    print(f"errors in bfloat16: log-probabilities {stock[0]:.2e} stock, {shared[0]:.2e} shared prefix; ", end="")
    print(f"gradients {stock[1]:.2e} stock, {shared[1]:.2e} shared prefix", flush=True)
    return {"logp_error_ratio": round(shared[0] / stock[0], 3), "grad_error_ratio": round(shared[1] / stock[1], 3)}


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    loss = engines.loss_config(folder, "actor_rollout_ref.actor.entropy_coeff=0")
    names = list(SHAPES)[:1] if arguments.quick else arguments.shapes
    shapes = {name: SHAPES[name] for name in names}
    made: dict[str, dict[str, dict[str, float]]] = {name: {} for name in shapes}
    for side in SIDES:
        started = time.perf_counter()
        engine = build(folder, side, arguments.size)
        model_config = engine.module.config
        print(f"{side}: built in {time.perf_counter() - started:.0f} s", flush=True)
        for name, grid in shapes.items():
            rollouts = engines.Rollouts(model_config)
            rollouts.group([RESPONSE] * ROLLOUTS, ("video", grid), text=TEXT - 9)
            runs = [passes(engine, rollouts, loss) for _ in range(3)][1:]
            made[name][side] = {key: min(run[key] for run in runs) for key in runs[0]}
            line = "".join(f"{value:9.2f} {key}" for key, value in made[name][side].items())
            print(f"{side:8}{name:8}{len(rollouts.rows[0]['prompts']):6} prompt tokens{line}", flush=True)
        free(engine)
    figures: dict[str, Any] = {}
    for name, sides in made.items():
        stock, shared, whole = (sides[side] for side in SIDES)
        which = f"{arguments.size}_{name}"
        figures[f"train_ratio_{which}"] = round(stock["all"] / shared["all"], 2)
        figures[f"update_ratio_{which}"] = round(stock["update"] / shared["update"], 2)
        figures[f"whole_ratio_{which}"] = round(stock["all"] / whole["all"], 2)
        figures[f"memory_ratio_{which}"] = round(shared["GiB"] / stock["GiB"], 3)
    if arguments.size == "3b" and not arguments.quick:
        figures |= measure_errors(folder, model_config, loss)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four layers and the first shape, no errors")
    parser.add_argument("--size", choices=SIZES, default="3b", help="the published model whose size it has")
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", default=list(SHAPES), help="frames x tokens of two")
    recording.add_option(parser)
    arguments = parser.parse_args()
    smoke_gpu.check()
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1, store=dist.HashStore())
    with tempfile.TemporaryDirectory(prefix="p2r") as name:
        folder = write_model(Path(name) / "model", arguments.size, 4 if arguments.quick else None)
        figures = measure(folder, arguments)
    dist.destroy_process_group()
    recording.finish("shared_prefix_gpu", figures, arguments)


if __name__ == "__main__":
    main()
