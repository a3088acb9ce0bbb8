# SPDX-License-Identifier: Apache-2.0
"""Time and weigh the three training passes of a step: verl's engine against ours with the shared prefix.

    python benchmarks/shared_prefix.py [--quick] [--record]

One run builds both engines on the same tiny Qwen2.5-VL of about 7 M parameters and gives both the same rows: rollouts
of a prompt with a clip (1088 prompt tokens, 192 response tokens, 8 rollouts). It runs the old log-probabilities, the
reference's and the update. `stock` is verl's FSDP2 engine as it runs on the machine, with nothing of ours: on a CPU it
pads. Sides alternate, the fastest round of each counts, and what counts is processor time of one thread, which other
processes on the machine hardly disturb. A third pair of engines has a frozen vision tower and either keeps its features
for the step or does not. `--quick` takes one layer, 320 and 64 tokens, one round and no frozen tower. Prints a table;
the last line is a JSON object:

    train_ratio         how many times faster ours is over all passes
    update_ratio        the same for the update alone
    text_ratio          the same for all passes on rows of text that share nothing (and one small image: without any,
                        verl 0.9.1 crashes with transformers 5)
    features_ratio      how many times faster all passes are when a frozen tower makes its features once a step
    kept_memory_ratio   memory that autograd keeps for the backward pass of the same rows, ours over stock's
    max_dlogp           largest difference of a log-probability or an entropy
    grad_rel            relative difference of the gradient of the worst parameter
    tower_calls         calls of the vision tower in a micro-batch
    frozen_tower_calls  calls of a frozen tower in all passes of a step
"""

from __future__ import annotations

import argparse
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
import recording  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

ROLLOUTS, TEXT = 8, 60  # rows, tokens
SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8}
SIDES = {"stock": (engines.StockEngine, ()), "ours": (engines.CPUFSDPEngine, (engines.SHARED,))}
NO_FEATURES = {"features_ratio": None, "frozen_tower_calls": None}
FROZEN = (engines.SHARED, "engine.freeze_vision_tower=True")
FROZEN_SIDES = {"every pass": FROZEN, "once a step": (*FROZEN, "engine.vision_features_gib=1")}


def write_model(folder: Path, quick: bool) -> Path:
    """Write a Qwen2.5-VL with the quickstart's vocabulary, but more and wider layers."""
    import make_model
    from transformers import AutoConfig, AutoModelForImageTextToText

    make_model.save(folder, seed=0)
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    for key, value in {**SIZE, **({"num_hidden_layers": 1} if quick else {})}.items():
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


class Kept:
    """Counts the bytes that autograd keeps for backward: each storage once, without the weights."""

    def __init__(self):
        self._storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.values() if tensor.is_nested else getattr(tensor, "_local_tensor", tensor)
        if not any(isinstance(x, torch.nn.Parameter) for x in (tensor, tensor._base, plain, plain._base)):
            storage = plain.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def mib(self) -> float:
        return sum(self._storages.values()) / 2**20


def passes(engine: Any, batch: Callable[..., Any], config: Any) -> dict[str, Any]:
    """Run the three passes; return their processor seconds, their results, and the memory that the update kept."""
    kept, start = Kept(), time.process_time()
    outputs = engines.infer(engine, batch())
    engines.infer(engine, batch(calculate_entropy=False))
    middle = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        _, grads = engines.train(engine, batch(), config)
    end = time.process_time()
    engine.lr_scheduler_step()  # verl's end of a step
    return {"all": end - start, "update": end - middle, "outputs": outputs, "grads": grads, "kept": kept.mib}


def best(built: dict[str, Any], batch: Callable[..., Any], config: Any, rounds: int) -> dict[str, dict[str, Any]]:
    """Run some rounds of each side in turn; return the fastest of each."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in built}
    for _ in range(rounds):
        for side, engine in built.items():
            runs[side].append(passes(engine, batch, config))
    return {
        side: {**some[0], **{k: min(run[k] for run in some) for k in ("all", "update")}} for side, some in runs.items()
    }


def measure(folder: Path, quick: bool) -> dict[str, Any]:
    grid, response, rounds = ((4, 16, 16), 64, 1) if quick else ((16, 16, 16), 192, 2)
    built = {side: engines.build(folder, cls, *more) for side, (cls, more) in SIDES.items()}
    loss = engines.loss_config(folder)
    model = built["ours"].module.config
    clips, text = engines.Rollouts(model), engines.Rollouts(model)
    clips.group([response] * ROLLOUTS, ("video", grid), text=64 - 9)
    text.group([TEXT], ("image", (1, 4, 4)), text=TEXT - 4)
    for _ in range(ROLLOUTS - 1 if quick else 2 * ROLLOUTS - 1):
        text.group([TEXT], text=TEXT)
    print(f"prompt {len(clips.rows[0]['prompts'])} tokens, response {response}, {ROLLOUTS} rollouts")

    def batch(**more: Any) -> Any:
        return clips.batch(**{"micro_batch_size_per_gpu": ROLLOUTS, **more})

    of_text = best(built, lambda **more: text.batch(**more), loss, 2 if quick else 3)  # warms up, too
    calls = engines.TowerCalls(built["ours"])
    made = best(built, batch, loss, rounds)
    stock, ours = made["stock"], made["ours"]
    for side, run in made.items():
        print(
            f"{side:8}{run['all']:9.2f} s all passes{run['update']:9.2f} s update{run['kept']:9.0f} MiB kept"
            f"{of_text[side]['all']:9.2f} s text"
        )
    return {
        "train_ratio": round(stock["all"] / ours["all"], 2),
        "update_ratio": round(stock["update"] / ours["update"], 2),
        "text_ratio": round(of_text["stock"]["all"] / of_text["ours"]["all"], 2),
        "kept_memory_ratio": round(ours["kept"] / stock["kept"], 3),
        "max_dlogp": max((ours["outputs"][k] - stock["outputs"][k]).abs().max().item() for k in stock["outputs"]),
        "grad_rel": engines.worst(ours["grads"], stock["grads"]),
        "tower_calls": calls.calls / (3 * rounds),  # all rows are one micro-batch
        **(NO_FEATURES if quick else measure_features(folder, batch, loss, rounds)),
    }


def measure_features(folder: Path, batch: Callable[..., Any], loss: Any, rounds: int) -> dict[str, float]:
    """Time a step's passes with a frozen tower, whose features are made in every pass or once a step."""
    frozen = {side: engines.build(folder, engines.CPUFSDPEngine, *more) for side, more in FROZEN_SIDES.items()}
    calls = engines.TowerCalls(frozen["once a step"])
    made = best(frozen, batch, loss, rounds)
    seconds = {side: run["all"] for side, run in made.items()}
    for side, value in seconds.items():
        print(f"frozen tower, features {side:12}{value:9.2f} s all passes")
    ratio = seconds["every pass"] / seconds["once a step"]
    return {"features_ratio": round(ratio, 2), "frozen_tower_calls": calls.calls / rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a smaller model, shorter rows, one round; ends within 50 seconds"
    )
    recording.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    with tempfile.TemporaryDirectory(prefix="p2r") as name:
        results = measure(write_model(Path(name) / "model", arguments.quick), arguments.quick)
    dist.destroy_process_group()
    recording.finish("shared_prefix", results, arguments)


if __name__ == "__main__":
    main()
