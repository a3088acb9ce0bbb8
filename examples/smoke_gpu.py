# SPDX-License-Identifier: Apache-2.0
"""What `smoke_gpu.sh` needs in addition to verl: a check for a GPU, a random 3B with long videos, and the report.

python examples/smoke_gpu.py check
python examples/smoke_gpu.py model OUT
python examples/smoke_gpu.py data QUICKSTART_DATA OUT
python examples/smoke_gpu.py report OUT
"""

import json
import math
import sys
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.table import Table

QUICKSTART = Path(__file__).resolve().parent / "quickstart"
sys.path.insert(0, str(QUICKSTART))

VOCABULARY = 151936
SIDE, RATE, SECONDS = 336, 8, 8  # pixels, frames a second, seconds: more of each than 16 frames of 128 x 28 x 28 need
WARM_UP = 2  # steps that compile, capture graphs and fill caches
PHASES = ("gen", "reward", "old_log_prob", "ref", "adv", "update_actor", "update_weights")
MEMORY = "actor/perf/max_memory_allocated_gb"
SPEED = "perf/throughput"
TARGET = 0.02
app = typer.Typer(add_completion=False, help=__doc__.splitlines()[0])


@app.command()
def check() -> None:
    """End with an error unless a CUDA device is there, for torch and with memory for the 3B."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"no CUDA device: torch {torch.__version__} sees none. This test is for a machine with an NVIDIA GPU of 80 "
            "GB; `nvidia-smi` says whether its driver is there, `make quickstart` runs without one"
        )
    device = torch.cuda.get_device_properties(0)
    print(f"{device.name}, {device.total_memory / 2**30:.0f} GiB, torch {torch.__version__}")


def tokenizer_3b():
    """The quickstart's tokenizer, filled up to Qwen2.5-VL's vocabulary: each id that a random model samples decodes."""
    import make_model
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    small = make_model.build_tokenizer()
    state = json.loads(small.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"filler{i}": i for i in range(len(vocabulary), VOCABULARY)})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=small.eos_token,
        pad_token=small.pad_token,
        additional_special_tokens=small.all_special_tokens,
        model_max_length=32768,
        chat_template=small.chat_template,
    )


def config_3b(tokenizer):
    """Qwen2.5-VL-3B's published shape, with this tokenizer's ids."""
    import make_model

    config = make_model.build_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.update({"vocab_size": VOCABULARY, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36})
    text.update({"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000})
    text.update({"layer_types": ["full_attention"] * 36, "max_window_layers": 36, "initializer_range": 0.02})
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision.update({"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112})
    vision.update({"fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 2048, "initializer_range": 0.02})
    config.tie_word_embeddings = text.tie_word_embeddings = True
    return config


def processor_3b():
    """The quickstart's processor with a tokenizer of the published vocabulary's size; it resizes nothing."""
    import make_model

    processor = make_model.build_processor()
    processor.tokenizer = tokenizer_3b()
    for part in (processor.image_processor, processor.video_processor):  # the planner decides: no second resize
        part.size = {"shortest_edge": 56 * 56, "longest_edge": 12845056}
    return processor


@app.command()
def model(out: Path) -> None:
    """Write a Qwen2.5-VL-3B with random weights (7 GB) and its processor; a folder that stands is kept."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    if (out / "config.json").exists():
        return
    processor = processor_3b()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    network = Qwen2_5_VLForConditionalGeneration(config_3b(processor.tokenizer))
    processor.save_pretrained(out)
    network.save_pretrained(out)
    print(f"{network.num_parameters() / 1e9:.2f} B parameters in {out}")


@app.command()
def data(source: Path, out: Path, rows: int = 64) -> None:
    """Write the quickstart's RL questions on longer, larger videos: 16 frames at the paper's budget of pixels."""
    import av
    import numpy as np
    import pandas as pd

    (out / "videos").mkdir(parents=True, exist_ok=True)
    table = pd.read_parquet(source / "rl_train.parquet").head(rows)
    rng = np.random.default_rng(0)
    videos = []
    for i in range(len(table)):
        path = out / "videos" / f"{i:03}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
            tile = rng.integers(0, 255, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            for frame in range(RATE * SECONDS):
                picture = np.roll(tile, frame, axis=1).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        videos.append([{"type": "video", "video": str(path.resolve())}])
    table.assign(videos=videos).to_parquet(out / "rl.parquet")


def read(path: Path) -> list[dict[str, float]]:
    """What verl's file logger wrote of each training step after the warm-up.

    Raises:
        SystemExit: when there is no such step.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steps = [line["data"] for line in lines if line["step"] > WARM_UP and "timing_s/step" in line["data"]]
    if not steps:
        raise SystemExit(
            f"{path}: no training step after the first {WARM_UP}: the run has not got that far, see its log"
        )
    return steps


def summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians over steps: seconds of the step and of each phase, tokens a second; the most memory, in GB."""
    times = {key: f"timing_s/{key}" for key in ("step", *PHASES)}
    found = {key: median(step[name] for step in steps) for key, name in times.items() if all(name in s for s in steps)}
    found["other"] = found["step"] - sum(found[phase] for phase in PHASES if phase in found)
    found["tokens_per_s"] = median(step[SPEED] for step in steps)
    found["memory_gb"] = max(step.get(MEMORY, math.nan) for step in steps)
    return found


@app.command()
def report(out: Path) -> None:
    """Show OUT/{pa_grpo,grpo}/metrics.jsonl side by side; the last line is JSON."""
    runs = {name: summary(read(out / name / "metrics.jsonl")) for name in ("pa_grpo", "grpo")}
    ratio = runs["pa_grpo"]["step"] / runs["grpo"]["step"]
    table = Table("", "PA-GRPO", "GRPO", "ratio", title=f"Qwen2.5-VL-3B, random: medians after {WARM_UP} steps")
    for key, ours in runs["pa_grpo"].items():
        theirs = runs["grpo"].get(key, math.nan)
        table.add_row(key, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.3f}" if theirs else "")
    Console().print(table)
    within = abs(ratio - 1) <= TARGET
    print(json.dumps({"runs": runs, "ratio": round(ratio, 4), "target": TARGET, "within_target": within}))


if __name__ == "__main__":
    app()
