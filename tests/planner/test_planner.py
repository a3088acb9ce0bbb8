# SPDX-License-Identifier: Apache-2.0
"""The planner's arithmetic against numbers worked out by hand for Qwen2.5-VL-7B, and what it warns of."""

from dataclasses import replace

import pytest
import torch
import yaml

from verl_p2r.media.families import QWEN2_5_VL
from verl_p2r.media.plan import VideoInfo, VisionSpec, plan_video
from verl_p2r.media.rules import MediaSettings
from verl_p2r.planner import (
    GPUS,
    PHASES,
    Assumed,
    Engine,
    Gpu,
    Job,
    Judging,
    Lengths,
    Rollout,
    cache_tokens,
    faults,
    host,
    memory,
    step_time,
    total,
    traffic,
    worst_media,
)
from verl_p2r.planner.memory import text_activations, vision_activations
from verl_p2r.planner.model_shape import TABLE, ModelShape, find_shape
from verl_p2r.planner.sharing import text_operations, vision_operations
from verl_p2r.sizes import GIB

SHAPE = find_shape("Qwen2.5-VL-7B")[0]
PARAMS = 8_292_166_656
LAYER = 233_057_792  # 3584 × (2 × 3584 + 2 × 512 + 3 × 18944), biases of 3584 + 2 × 512, norms of 2 × 3584
EMBEDDING = 152_064 * 3_584
LENGTHS = Lengths(
    text=300,
    media=1024,
    response=526,
    grid=512,
    worst_media=4096,
    prompt_limit=5120,
    response_limit=1024,
    long_response=800,
)
ENGINE = Engine(gpus=8, per_node=8, fsdp_size=8)
ROLLOUT = Rollout(gpus=8, tensor=1, share=0.6, sleeps=True, max_length=6144, max_rows=256)
JOB = Job(
    shape=SHAPE,
    gpu=Gpu(80 * GIB, 312e12, 2e12),
    lengths=LENGTHS,
    engine=ENGINE,
    prompts=56,
    samples=8,
    steps=1000,
    rollout=ROLLOUT,
    reference=True,
    old_log_prob=True,
    judge=Judging(448, 256),
    pixel_store=32 * GIB,
)
SFT = replace(JOB, prompts=16, samples=1, rollout=None, reference=False, old_log_prob=False, judge=None, pixel_store=0)
SURE = Assumed(mfu=0.35, decoding=0.5, process=0, vllm_asleep=0, vllm_working=0, overhead=0, judge=2.0)


def with_engine(job: Job, **changes) -> Job:
    return replace(job, engine=replace(job.engine, **changes))


def with_rollout(job: Job, **changes) -> Job:
    return replace(job, rollout=replace(job.rollout, **changes))


def parts(lines, phase: str) -> dict[str, float]:
    return {line.name: line.value for line in lines if phase in line.phases}


def values(lines) -> dict[str, float]:
    return {line.name: line.value for line in lines}


def test_7b_update_memory_matches_hand_computed_parts():
    assert parts(memory(JOB, SURE), "update") == {
        "weights": PARAMS * 4 / 8,
        "optimizer": PARAMS * 8 / 8,
        "gradients": PARAMS * 4 / 8,
        # Outside of layers and blocks: embedding, output layer, last norm, patches' entry and the merger.
        "gathered weights": 2 * (2 * EMBEDDING + 3584 + 1_505_280 + 44_574_464 + 2 * LAYER),
        "gathered gradients": 2 * (2 * EMBEDDING + 3584 + 1_505_280 + 44_574_464 + LAYER),
        "checkpoints of layers": pytest.approx(2 * (16384 * 3584 * 28 + 16384 * 1024 / 1850 * 4 * 1280 * 32)),
        "activations of a layer": 16384 * (16 * 3584 + 6 * 3584 + 8 * 512 + 12 * 18944),
        "logits": 2 * 16384 * 152_064,
        "pixels": pytest.approx(16384 * 1024 / 1850 * 4 * 1176 * 6),
    }


@pytest.fixture(params=["Qwen2-VL-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def layers(request):
    """A family's shape with a quarter of its width, one of its decoder layers and one of its vision blocks, and what
    the layer takes in addition to its input."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = yaml.safe_load(TABLE.read_text())["models"][request.param]
    text = dict(config["text_config"])
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        text[key] //= 4
    text |= {"num_hidden_layers": 1, "vocab_size": 500}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [24, 20, 20]}
    vision = {**config["vision_config"], "depth": 1}
    vision |= {"deepstack_visual_indexes": [0]} if "deepstack_visual_indexes" in vision else {}
    config = {**config, "text_config": text, "vision_config": vision}
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config), attn_implementation="sdpa").model
    model = model.to(torch.bfloat16)
    positions = torch.arange(256).expand(3, 1, 256)
    angles = model.language_model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)
    return ModelShape.from_config(config), model.language_model.layers[0], model.visual.blocks[0], angles


def saved(module, *args, **kwargs) -> int:
    """Bytes that autograd keeps of a module's forward pass, its weights not counted."""
    weights, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        module(*args, **kwargs)
    return sum(size for size, _ in kept.values())


def test_layer_activation_estimate_bounds_what_autograd_saves(layers):
    shape, layer, block, angles = layers
    hidden = torch.zeros(1, 256, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
    a_token = saved(layer, hidden, position_embeddings=angles) / 256
    assert a_token < text_activations(shape) < 1.4 * a_token
    assert a_token == pytest.approx(text_activations(shape) - 4 * shape.inner, rel=0.15)
    patches = torch.zeros(256, shape.vision.width, dtype=torch.bfloat16, requires_grad=True)
    turns = torch.zeros(256, shape.vision.width // 16)
    ends = torch.tensor([0, 256], dtype=torch.int32)
    a_patch = saved(block, patches, cu_seqlens=ends, position_embeddings=(turns, turns)) / 256
    assert a_patch < vision_activations(shape) < 1.45 * a_patch


def test_memory_of_other_phases_matches_hand_computed_values():
    lines = memory(JOB, Assumed())
    states = PARAMS * 12 / 8
    assert total(lines, "generate") == pytest.approx(states + 0.6 * 80 * GIB + 2 * GIB)
    outside = 2 * EMBEDDING + 3584 + 1_505_280 + 44_574_464
    sync = PARAMS * 2 + 4 * (outside + LAYER + PARAMS / 8) + 2 * GIB
    assert total(lines, "weight sync") == pytest.approx(states + sync + 4.5 * GIB)
    log_prob = parts(lines, "log-prob")
    assert log_prob["logits"] == 2 * 2 * 16384 * 152_064  # its entropy is computed, too
    assert log_prob["reference, gathered"] == log_prob["gathered weights"]
    assert "gradients" not in log_prob


def test_offloaded_state_moves_to_host_memory():
    job = with_engine(JOB, param_offload=True, optimizer_offload=True)
    there = {phase: {"weights", "optimizer"} & parts(memory(job, SURE), phase).keys() for phase in PHASES}
    assert there == {
        "generate": set(),
        "log-prob": {"weights"},
        "update": {"weights", "optimizer"},
        "weight sync": {"weights"},
    }
    node = values(host(job))
    assert node["weights, offloaded"] == PARAMS * 4
    assert node["optimizer, offloaded"] == PARAMS * 8
    assert node["reference (always offloaded)"] == PARAMS * 4
    two_nodes = values(host(with_engine(job, gpus=16, fsdp_size=16)))
    assert two_nodes["optimizer, offloaded"] == PARAMS * 4
    always = with_engine(JOB, policy_offload=True, fsdp2=True)
    assert not {"weights", "optimizer", "gradients"} & parts(memory(always, SURE), "update").keys()
    assert values(host(always))["optimizer, offloaded"] == PARAMS * 8


def test_frozen_vision_tower_saves_gradients_and_backward_pass():
    frozen = with_engine(JOB, frozen_vision=True)
    text = PARAMS - 676_550_144
    assert parts(memory(frozen, SURE), "update")["optimizer"] == text * 8 / 8
    assert parts(memory(frozen, SURE), "update")["gradients"] == text * 4 / 8
    assert parts(memory(frozen, SURE), "update")["weights"] == PARAMS * 4 / 8
    kept = parts(memory(frozen, SURE), "update")["checkpoints of layers"]
    assert kept == 2 * 16384 * 3584 * 28
    speed = 8 * 312e12 * 0.35
    vision = 448 * SHAPE.vision_operations(4096, 512)
    saved = values(step_time(JOB, SURE))["update"] - values(step_time(frozen, SURE))["update"]
    assert saved == pytest.approx(3 * vision / speed)


def test_lora_trains_only_adapters_and_needs_no_separate_reference():
    job = with_engine(JOB, lora_rank=64, gpus=1, fsdp_size=1)
    adapters = 64 * 28 * (4 * 3584 + 2 * 3584 + 2 * 512 + 3 * (3584 + 18944))
    update = parts(memory(job, SURE), "update")
    assert update["weights"] == 4 * (PARAMS + adapters)
    assert update["optimizer"] == 8 * adapters
    assert update["gradients"] == 4 * adapters
    assert "reference (always offloaded)" not in values(host(job))
    assert values(host(job))["vLLM's weights while it sleeps"] == 2 * PARAMS
    assert values(traffic(job))["weights to vLLM"] == 2 * adapters * 8
    assert parts(memory(job, SURE), "weight sync")["weights in transit"] == 2 * GIB
    sharded = with_engine(JOB, lora_rank=64)  # FSDP1 gathers everything to get at the adapters
    assert parts(memory(sharded, SURE), "weight sync")["weights in transit"] == 4 * (PARAMS + adapters) + 2 * GIB


def test_sft_plan_has_only_update_phase():
    lines = memory(SFT, SURE)
    assert {phase for line in lines for phase in line.phases} == {"update"}
    # 2 rows a GPU, each of up to 6,144 tokens, are less than the budget.
    assert parts(lines, "update")["logits"] == 2 * 2 * 6144 * 152_064
    assert [line.name for line in step_time(SFT, SURE)] == ["update", "a step", "the run"]
    assert values(traffic(SFT)) == {"pixels to the GPUs": 16 * 4096 * 1176 * 4}


def test_float32_memory_without_checkpointing_on_one_gpu():
    job = with_engine(
        SFT, gpus=1, per_node=1, fsdp_size=1, param_bytes=4, compute_bytes=4, checkpointing=False, tokens=1000
    )
    update = parts(memory(job, SURE), "update")
    assert "gathered weights" not in update  # nothing is cut and nothing is cast
    layer = 2 * 1000 * (16 * 3584 + 6 * 3584 + 8 * 512 + 12 * 18944)
    assert update["activations"] > 28 * layer
    assert update["logits"] == 4 * 1000 * 152_064
    assert "logits" not in parts(memory(with_engine(job, fused=True), SURE), "update")
    assert parts(memory(with_engine(JOB, defers_sync=True), SURE), "update")["gradients"] == 2 * PARAMS


def test_server_kv_cache_size_matches_hand_computed_tokens():
    tokens, _ = cache_tokens(JOB, SURE)
    assert tokens == pytest.approx((0.6 * 80 * GIB - 2 * PARAMS) / 57_344)
    of_two, _ = cache_tokens(with_rollout(JOB, tensor=2), SURE)
    assert of_two == pytest.approx((2 * 0.6 * 80 * GIB - 2 * PARAMS) / 57_344)


def test_step_traffic_matches_hand_computed_bytes():
    moved = values(traffic(JOB))
    assert moved["pixels into Ray's object store"] == 56 * 4096 * 1176 * 4
    # old, reference and update, on each row's own GPU
    assert moved["pixels out of it to the GPUs"] == 3 * 448 * 4096 * 1176 * 4
    frames = 448 * 16 * 128 * 28 * 28 * 3  # 16 frames of 128 x 28 x 28 pixels, three bytes each
    assert moved["frames to vLLM"] == frames
    assert moved["weights to vLLM"] == 8 * 2 * PARAMS


def test_step_time_matches_hand_computed_seconds():
    speed = 8 * 312e12 * 0.35
    # Twice the matrices of 28 layers and the output layer, and causal attention; then the vision tower.
    row = 2 * (28 * 233_046_016 + EMBEDDING) * 1850 + 2 * 28 * 3584 * 1850**2
    block = 4 * 1280**2 + 3 * 1280 * 3420
    vision = 4096 * (2 * (1176 * 1280 + 32 * block + 5120 * (5120 + 3584) / 4) + 4 * 1280 * (28 * 64 + 4 * 512))
    both = 448 * (row + vision) / speed
    seconds = values(step_time(JOB, SURE))
    assert seconds["old log-prob"] == pytest.approx(both)
    assert seconds["reference log-prob"] == pytest.approx(both)
    assert seconds["update"] == pytest.approx(4 * both)
    token = 2 * (PARAMS - 676_550_144) + 56 * (1324 + 263) * 57_344
    assert seconds["generate"] == pytest.approx(800 * token / (2e12 * 0.5))
    assert seconds["judge, after the last response"] == 2.0
    assert seconds["weight sync"] == pytest.approx(6 * PARAMS / 100e9)
    assert seconds["to and from host memory"] == pytest.approx(
        7 * PARAMS / 2 / 20e9
    )  # 7 micro-batches of the reference
    assert seconds["a step"] == pytest.approx(sum(seconds.values()) - seconds["a step"] - seconds["the run"])
    assert seconds["the run"] == pytest.approx(seconds["a step"] * 1000 / 3600)


def test_the_offload_policy_sends_the_weights_to_the_gpu_in_each_pass():
    seconds = values(step_time(with_engine(JOB, policy_offload=True, fsdp2=True), SURE))
    # 7 micro-batches: once each for the old log-probabilities and the reference, twice for the update.
    assert seconds["to and from host memory"] == pytest.approx(7 * (1 + 1 + 2) * 4 * PARAMS / 8 / 20e9)


def test_step_time_is_close_to_rule_of_thumb_in_examples():
    """examples/README.md: 12 operations a parameter and token; 95 s for 448 rows of 1,850 tokens."""
    seconds = values(step_time(JOB, SURE))
    model = seconds["old log-prob"] + seconds["reference log-prob"] + seconds["update"]
    assert pytest.approx(95, abs=1) == 12 * PARAMS * 448 * 1850 / (8 * 312e12 * 0.35)
    assert model == pytest.approx(95, rel=0.07)


def test_separate_servers_overlap_sampling_with_training():
    job = with_rollout(with_engine(JOB, gpus=7, fsdp_size=7), gpus=1, apart=True)
    seconds = values(step_time(job, SURE))
    sampling = seconds["generate"] + seconds["prefill"] + seconds["judge, after the last response"]
    training = sum(seconds[name] for name in ("old log-prob", "reference log-prob", "update", "weight sync"))
    training += seconds["to and from host memory"]
    assert seconds["a step"] == pytest.approx(max(sampling, training))


def test_rows_beyond_server_capacity_wait_for_next_wave():
    one, two = step_time(JOB, SURE), step_time(with_rollout(JOB, max_rows=28), SURE)
    half = 2 * (PARAMS - 676_550_144) + 28 * (1324 + 263) * 57_344
    assert values(two)["generate"] == pytest.approx(2 * 800 * half / 1e12)
    assert values(two)["generate"] > values(one)["generate"]


def test_ulysses_splits_vision_tower_cost_across_gpus():
    cut, whole = with_engine(JOB, ulysses_size=4), JOB
    assert values(step_time(cut, SURE))["old log-prob"] == values(step_time(whole, SURE))["old log-prob"]
    assert parts(memory(cut, SURE), "update")["pixels"] == parts(memory(whole, SURE), "update")["pixels"]


def test_small_batch_time_is_bound_by_weight_gathering():
    job = replace(SFT, prompts=8, gpu=GPUS["H100"])
    seconds = values(step_time(job, SURE))
    assert seconds["update"] == pytest.approx((4 * PARAMS + 4 * PARAMS) / 100e9)  # twice bfloat16, gradients float32
    rows = 4 * (text_operations(job, 8) + vision_operations(job, 8))
    assert values(step_time(with_engine(job, fsdp_size=1), SURE))["update"] == pytest.approx(rows / (8 * 989e12 * 0.35))


def test_valid_jobs_have_no_faults():
    assert list(faults(JOB, Assumed())) == []
    assert list(faults(SFT, Assumed())) == []


BAD = {
    "gpu": (replace(JOB, gpu=GPUS["A100-40GB"]), "GPU memory: update takes", "of 39"),
    "share": (with_rollout(JOB, share=0.95), "GPU memory: generate takes", "most of it vLLM"),
    "awake": (with_rollout(JOB, sleeps=False), "GPU memory: update takes", "offload"),
    "prompt": (replace(JOB, lengths=replace(LENGTHS, worst_media=5000)), "up to 5000 tokens and about 300", "raise"),
    "model-length": (with_rollout(JOB, max_length=6000), "6144 tokens exceed max_model_len=6000", "raise it"),
    "context": (with_rollout(JOB, max_length=200_000), "max_model_len=200000 exceeds the model's", "lower it"),
    "row": (
        replace(SFT, lengths=replace(LENGTHS, prompt_limit=200_000)),
        "201024 tokens exceed the model's context of 128000",
        "",
    ),
    "update-budget": (with_engine(JOB, tokens=4096), "4096 tokens per GPU × 1 GPUs of a sequence in update", "6144"),
    "infer-budget": (with_engine(JOB, infer_tokens=1024, ulysses_size=4), "in log-prob are less than one row", "1536"),
    "parallel": (
        with_engine(JOB, ulysses_size=3),
        "ulysses_size=3 does not divide 8 GPUs, 28 heads and 4",
        "",
    ),
    "shard": (with_engine(JOB, fsdp_size=3), "fsdp_size=3 does not divide 8 GPUs", ""),
    "mini-batch": (with_engine(JOB, mini_batches=5), "56 prompts cannot be split into 5 equal mini-batches", ""),
    "batch": (
        replace(JOB, prompts=7, samples=6),
        "42 rows of an update cannot be split evenly over 8",
        "multiple",
    ),
    "tensor": (with_rollout(JOB, tensor=3), "tensor parallelism: 3 does not divide 8 GPUs and 28 heads", ""),
    "cache": (with_rollout(JOB, share=0.2), "leaves no room for the keys and values of one row", "raise gpu_memory"),
    "pixels": (replace(JOB, pixel_store=GIB / 2), "a step's 1.0 GiB exceed the 0.5 GiB that are kept", "pixels_gib"),
    "judge": (replace(JOB, judge=Judging(448, 8)), "448 calls of 2 s, 8 at a time, take 112 s", "concurrency"),
}


@pytest.mark.parametrize(("job", "what", "remedy"), BAD.values(), ids=list(BAD))
def test_infeasible_job_is_reported_with_remedy(job, what, remedy):
    found = [fault for fault in faults(job, Assumed()) if what in fault]
    assert len(found) == 1, list(faults(job, Assumed()))
    assert remedy in found[0]


@pytest.mark.parametrize("frames", [8, 16, 64])
def test_no_video_exceeds_worst_case_token_count(frames):
    spec = VisionSpec(QWEN2_5_VL, 14, 2, 2, (56 * 56, 12845056), (56 * 56, 12845056))
    media = MediaSettings(max_frames=frames)
    worst, _ = worst_media(media, spec)
    element = media.fill({"video": "a.mp4"})
    sizes = [(height, width) for height in range(48, 1000, 68) for width in range(48, 1000, 68)]
    costs = [
        plan_video(element, VideoInfo(seconds * 30, 30.0, *size), spec).tokens
        for size in sizes
        for seconds in (1, 60)
        if max(size) <= 4 * min(size)
    ]
    assert max(costs) <= worst
    assert max(costs) > 0.95 * worst
    assert worst_media(media, spec, [(1080, 1920)]) == (frames // 2 * 8 * 15, 4 * 8 * 15)  # 224 x 420 pixels
