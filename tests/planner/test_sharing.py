# SPDX-License-Identifier: Apache-2.0
"""What shared prompts and kept features save, against numbers worked out by hand for Qwen2.5-VL-7B."""

from dataclasses import replace

import pytest
from test_planner import EMBEDDING, JOB, SFT, SHAPE, SURE, parts, values, with_engine

from verl_p2r.planner import host, memory, step_time, variants
from verl_p2r.planner.model_shape import find_shape
from verl_p2r.sizes import GIB

SPEED = 8 * 312e12 * 0.35
LAYERS = 28 * 233_046_016  # matrices of the language model's layers
VISION = SHAPE.vision_operations(4096, 512)  # operations for one prompt's video; worked out by hand in test_planner.py
FROZEN = with_engine(JOB, frozen_vision=True)


def of_a_group() -> float:
    """A prompt of 1,324 tokens and 8 responses of 526: the prompt once, and logits of responses only."""
    matrices = LAYERS * (1324 + 8 * 526) + EMBEDDING * 8 * 526
    pairs = 1324**2 + 8 * (1850**2 - 1324**2)  # a response attends to the prompt and causally to itself
    return 2 * matrices + 2 * 28 * 3584 * pairs


def test_shared_prefix_pass_times_match_hand_computed_seconds():
    seconds = values(step_time(with_engine(JOB, shares_prefix=True), SURE))
    both = 56 * (of_a_group() + VISION) / SPEED
    assert seconds["old log-prob"] == pytest.approx(both)
    assert seconds["reference log-prob"] == pytest.approx(both)
    assert seconds["update"] == pytest.approx(4 * both)
    # 7 prompts a GPU, 5,532 packed tokens each, in micro-batches of 16,384: 3 instead of 7 of the reference
    assert seconds["to and from host memory"] == pytest.approx(3 * 8_292_166_656 * 4 / 8 / 20e9)


def test_single_response_with_shared_prefix_saves_only_prompt_logits():
    one = replace(JOB, samples=1)
    whole, shared = (values(step_time(with_engine(one, shares_prefix=x), SURE))["old log-prob"] for x in (False, True))
    assert whole - shared == pytest.approx(56 * 2 * EMBEDDING * 1324 / SPEED)


def test_shared_prefix_cuts_paper_training_time_by_more_than_half():
    """By the table of operations in the design: 2.83 times less for 600 response tokens and 300 of text."""
    job = replace(JOB, lengths=replace(JOB.lengths, text=300, response=600))
    times = [values(step_time(with_engine(job, shares_prefix=x), SURE)) for x in (False, True)]
    passes = [sum(t[name] for name in ("old log-prob", "reference log-prob", "update")) for t in times]
    assert passes[0] / passes[1] == pytest.approx(2.83, abs=0.2)


def test_shared_prefix_update_memory_matches_hand_computed_parts():
    update = parts(memory(with_engine(JOB, shares_prefix=True), SURE), "update")
    packed = 1324 + 8 * 526
    assert update["logits"] == pytest.approx(2 * 16384 * 8 * 526 / packed * 152_064)
    assert update["pixels"] == pytest.approx(16384 * 1024 / packed * 4 * 1176 * 6)
    keys = 16384 * (1324 + 8 * 1850) / packed  # each response gathers the prompt's keys and its own
    assert update["keys and values of shared prefixes"] == pytest.approx(2 * 2 * 512 * keys)
    assert "keys and values of shared prefixes" not in parts(memory(JOB, SURE), "update")


def test_micro_batch_is_capped_by_longest_group():
    """One prompt a GPU and mini-batch: 5,120 + 8 × 1,024 tokens, when the budget allows."""
    job = with_engine(replace(JOB, prompts=8), shares_prefix=True, tokens=50_000)
    assert job.micro_tokens(50_000) == 5120 + 8 * 1024
    assert job.micro_tokens(8_000) == 8_000


def test_kept_vision_features_leave_one_tower_pass_per_step():
    once = with_engine(FROZEN, features=2 * GIB)
    without, kept = values(step_time(FROZEN, SURE)), values(step_time(once, SURE))
    assert kept["old log-prob"] == without["old log-prob"]
    for name in ("reference log-prob", "update"):  # a frozen tower runs forward once in the update
        assert without[name] - kept[name] == pytest.approx(448 * VISION / SPEED)
    unfrozen = values(step_time(with_engine(JOB, features=2 * GIB), SURE))
    assert unfrozen == values(step_time(JOB, SURE))


def test_first_epoch_computes_features_when_no_other_pass_runs():
    bypass = replace(with_engine(FROZEN, features=2 * GIB, epochs=3), old_log_prob=False, reference=False)
    without = with_engine(bypass, features=0)
    saved = values(step_time(without, SURE))["update"] - values(step_time(bypass, SURE))["update"]
    assert saved == pytest.approx(2 * 448 * VISION / SPEED)


def test_vision_features_beyond_store_size_are_recomputed():
    """7 prompts a GPU with a shared prefix, 1,024 features of 3,584 numbers of 2 bytes each."""
    whole = 7 * 1024 * 3584 * 2
    job = with_engine(FROZEN, shares_prefix=True, features=whole / 4)
    without = values(step_time(with_engine(job, features=0), SURE))
    kept = values(step_time(job, SURE))
    assert without["reference log-prob"] - kept["reference log-prob"] == pytest.approx(56 * VISION / SPEED / 4)
    assert values(host(job))["vision features of a step"] == 8 * whole / 4
    assert values(host(with_engine(job, features=GIB)))["vision features of a step"] == 8 * whole


def test_deepstack_features_count_toward_kept_features():
    qwen3 = replace(FROZEN, shape=find_shape("Qwen3-VL-8B")[0])
    job = with_engine(qwen3, shares_prefix=True, features=GIB)
    assert values(host(job))["vision features of a step"] == 8 * 7 * 1024 * 4096 * 2 * 4


def test_variants_cover_job_with_and_without_each_feature():
    on = with_engine(FROZEN, shares_prefix=True, features=GIB)
    for job in (FROZEN, on):
        made = dict(variants(job))
        assert [(v.engine.shares_prefix, v.engine.features > 0) for v in made.values()] == [
            (False, False),
            (False, True),
            (True, False),
            (True, True),
        ]
        assert list(made)[-1] == "shared prefix, features once a step"
    assert dict(variants(on))["shared prefix, features once a step"] == on
    assert list(dict(variants(JOB))) == ["whole rows", "shared prefix"]
    assert list(dict(variants(with_engine(JOB, ulysses_size=2)))) == ["whole rows"]  # refused with Ulysses
    assert not list(variants(SFT))
