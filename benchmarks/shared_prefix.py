# SPDX-License-Identifier: Apache-2.0
"""Time and weigh the three training passes of a step: verl's engine against ours with the shared prefix.

    python benchmarks/shared_prefix.py [--quick]

One run builds both engines on the same tiny Qwen2.5-VL of about 7 M parameters and gives both the same rows: rollouts
of prompts with a clip (1088 prompt tokens, 192 response tokens, 8 rollouts each), the old log-probabilities, the
reference's and the update. `stock` is verl's FSDP2 engine as it runs on the machine, with nothing of ours: on a CPU it
pads. The rounds alternate, and the fastest of each side counts. `--quick` takes a shorter clip and one round. Prints a
table; the last line is a JSON object:

    train_ratio         how many times faster ours is over all passes
    update_ratio        over the update alone
    text_ratio          over all passes on rows of text that share nothing
    kept_memory_ratio   share of stock's memory that autograd keeps for the backward pass of the same rows
    max_dlogp           largest difference of a log-probability or an entropy
    grad_rel            relative difference of the gradient of the worst parameter
    tower_calls         of the vision tower in a micro-batch
    gpu                 the device's name, or null
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(VERL_PLATFORM="cpu", HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/plugin/fsdp", "tests/plugin", "examples/quickstart")]

import verl_p2r.plugin  # noqa: F401, E402, I001  torch and torchvision made to fit before anything imports them

import prefix_engines as engines  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

ROLLOUTS, RESPONSE, TEXT = 8, 192, 60  # rows, tokens, tokens
SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
SIDES = {"stock": (engines.StockEngine, ()), "ours": (engines.CPUFSDPEngine, (engines.SHARED,))}


def write_model(folder: Path) -> Path:
    """A Qwen2.5-VL of the quickstart's vocabulary, with more and wider layers."""
    import make_model
    from transformers import AutoConfig, AutoModelForImageTextToText

    make_model.save(folder, seed=0)
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    for key, value in SIZE.items():
        setattr(text, key, value)
    text.num_attention_heads, text.num_key_value_heads = 8, 2
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    text.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    text.initializer_range = 0.05
    config.vision_config.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    print(f"{model.num_parameters() / 1e6:.1f} M parameters")
    return folder


def passes(engine: Any, batch: Callable[..., Any], config: Any) -> tuple[float, float]:
    """Seconds of all three passes, and of the update alone."""
    start = time.perf_counter()
    engines.infer(engine, batch())
    engines.infer(engine, batch(calculate_entropy=False))
    middle = time.perf_counter()
    engines.train(engine, batch(), config)
    end = time.perf_counter()
    return end - start, end - middle


def kept_bytes(engine: Any, batch: Callable[..., Any], config: Any) -> int:
    """Bytes that autograd keeps for backward, each storage once, without the parameters."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in engine.module.parameters() if not hasattr(p, "full_tensor")}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and not isinstance(tensor, torch.nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engines.train(engine, batch(), config)
    return sum(kept.values())


def timed(built: dict[str, Any], batch: Callable[..., Any], config: Any, rounds: int) -> dict[str, tuple[float, ...]]:
    """The fastest round of each side; sides alternate, so that what else runs on the machine meets both."""
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in built}
    for _ in range(rounds):
        for side, engine in built.items():
            seconds[side].append(passes(engine, batch, config))
    return {side: tuple(min(column) for column in zip(*values, strict=True)) for side, values in seconds.items()}


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    grid, prompts, rounds = ((16, 16, 16), 1, 1) if quick else ((16, 16, 16), 2, 3)
    built = {side: engines.build(folder, cls, *more) for side, (cls, more) in SIDES.items()}
    loss = engines.loss_config(folder)
    model = built["ours"].module.config
    clips, text = engines.Rollouts(model), engines.Rollouts(model)
    for _ in range(prompts):
        clips.group([RESPONSE] * ROLLOUTS, ("video", grid), text=64 - 9)
    for _ in range(4 * ROLLOUTS):
        text.group([TEXT], text=TEXT)
    batch = lambda **more: clips.batch(**{"micro_batch_size_per_gpu": ROLLOUTS, **more})  # noqa: E731
    print(f"prompt {len(clips.rows[0]['prompts'])} tokens, response {RESPONSE}, {prompts} x {ROLLOUTS} rollouts")

    numbers = {side: engines.infer(engine, batch()) for side, engine in built.items()}
    difference = max((numbers["ours"][k] - numbers["stock"][k]).abs().max().item() for k in numbers["stock"])
    calls = engines.TowerCalls(built["ours"])
    grads = {side: engines.train(engine, batch(), loss)[1] for side, engine in built.items()}
    tower_calls = calls.calls
    kept = {side: kept_bytes(engine, batch, loss) for side, engine in built.items()}
    seconds = timed(built, batch, loss, rounds)
    of_text = timed(built, lambda **more: text.batch(**more), loss, rounds + 1)
    for side in built:
        print(
            f"{side:8}{seconds[side][0]:9.2f} s all passes{seconds[side][1]:9.2f} s update"
            f"{kept[side] / 2**20:9.0f} MiB kept{of_text[side][0]:9.2f} s text"
        )
    return {
        "train_ratio": round(seconds["stock"][0] / seconds["ours"][0], 2),
        "update_ratio": round(seconds["stock"][1] / seconds["ours"][1], 2),
        "text_ratio": round(of_text["stock"][0] / of_text["ours"][0], 2),
        "kept_memory_ratio": round(kept["ours"] / kept["stock"], 3),
        "max_dlogp": difference,
        "grad_rel": engines.worst(grads["ours"], grads["stock"]),
        "tower_calls": tower_calls,
        "gpu": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round on one prompt")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    with tempfile.TemporaryDirectory(prefix="p2r") as name:
        results = measure(write_model(Path(name) / "model"), quick)
    dist.destroy_process_group()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
