# SPDX-License-Identifier: Apache-2.0
"""Parts of a planned run that will not fit or not run."""

from collections.abc import Iterator
from math import ceil

from verl_p2r.planner.job import PHASES, Assumed, Job, total
from verl_p2r.planner.memory import cache_tokens, memory
from verl_p2r.planner.seconds import judge_time, step_time
from verl_p2r.sizes import GIB


def faults(job: Job, assumed: Assumed) -> Iterator[str]:
    """Describe what will not fit or not run, each with a remedy.

    Args:
        job: the run.
        assumed: assumed figures.
    """
    lines = memory(job, assumed)
    for phase in PHASES if job.rollout else ("update",):
        if (used := total(lines, phase)) > job.gpu.memory:
            most = max((line for line in lines if phase in line.phases), key=lambda line: line.value)
            yield (
                f"GPU memory: {phase} takes {used / GIB:.0f} GiB of {job.gpu.memory / GIB:.0f}, most of it {most.name} "
                f"({most.value / GIB:.0f} GiB): offload, use more GPUs, or lower the token budget or vLLM's share"
            )
    yield from _lengths_at_fault(job)
    yield from _parts_at_fault(job)
    if job.rollout is not None:
        yield from _sampling_at_fault(job, assumed)


def _lengths_at_fault(job: Job) -> Iterator[str]:
    ln, e = job.lengths, job.engine
    room = ln.prompt_limit if job.rollout else ln.longest - ln.response
    if ln.worst_media + ln.text > room:
        yield (
            f"prompt: media of up to {ln.worst_media} tokens and about {ln.text:.0f} of text exceed {room:.0f}: "
            "raise the limit, or take fewer or smaller frames"
        )
    if ln.longest > job.shape.context:
        yield f"length: rows of up to {ln.longest} tokens exceed the model's context of {job.shape.context}"
    for name, budget in (("update", e.tokens), *((("log-prob", e.infer_tokens),) if job.rollout else ())):
        if budget * e.ulysses_size < ln.longest:
            yield (
                f"token budget: {budget:.0f} tokens per GPU × {e.ulysses_size} GPUs of a sequence in {name} are less "
                f"than one row of up to {ln.longest}: raise it to {ceil(ln.longest / e.ulysses_size)}"
            )


def _parts_at_fault(job: Job) -> Iterator[str]:
    e, s, size = job.engine, job.shape, job.engine.ulysses_size
    if e.gpus % size or s.heads % size or (s.kv_heads % size and size % s.kv_heads):
        yield (
            f"sequence parallelism: ulysses_size={size} does not divide {e.gpus} GPUs, {s.heads} heads and "
            f"{s.kv_heads} key heads"
        )
        return
    if e.gpus % e.fsdp_size:
        yield f"fsdp_size={e.fsdp_size} does not divide {e.gpus} GPUs"
    if job.prompts % e.mini_batches:
        yield f"batch: {job.prompts} prompts cannot be split into {e.mini_batches} equal mini-batches"
    groups = e.gpus // e.ulysses_size
    if job.rows / e.mini_batches % groups:
        yield (
            f"batch: {job.rows / e.mini_batches:g} rows of an update cannot be split evenly over {groups} groups of "
            "GPUs: take a multiple"
        )


def _sampling_at_fault(job: Job, assumed: Assumed) -> Iterator[str]:
    r, s, ln = job.rollout, job.shape, job.lengths
    assert r is not None
    if ln.longest > r.max_length:
        yield (
            f"length: prompt and response of up to {ln.longest} tokens exceed max_model_len={r.max_length}: raise it"
        )
    if r.max_length > s.context:
        yield f"length: max_model_len={r.max_length} exceeds the model's context of {s.context}: lower it"
    if r.gpus % r.tensor or s.heads % r.tensor:
        yield f"tensor parallelism: {r.tensor} does not divide {r.gpus} GPUs and {s.heads} heads"
    if cache_tokens(job, assumed)[0] < r.max_length:
        yield (
            f"vLLM: its share of {r.share:g} leaves no room for the keys and values of one row of {r.max_length} "
            "tokens: raise gpu_memory_utilization or tensor_model_parallel_size"
        )
    pixels = job.prompts * job.patches * s.vision.patch * 4
    if 0 < job.pixel_store < pixels:
        yield (
            f"pixels: a step's {pixels / GIB:.1f} GiB exceed the {job.pixel_store / GIB:.1f} GiB that are kept; the "
            "rest is made again, which is slow: raise data.p2r.media_cache.pixels_gib"
        )
    yield from _judge_at_fault(job, assumed)


def _judge_at_fault(job: Job, assumed: Assumed) -> Iterator[str]:
    if job.judge is None:
        return
    times = {line.name: line.value for line in step_time(job, assumed)}
    waits = times["judge, after the last response"]
    if waits > assumed.judge and waits > 0.1 * times["a step"]:
        needed = ceil(job.judge.calls * assumed.judge / max(times["generate"], assumed.judge))
        yield (
            f"judge: {job.judge.calls} calls of {assumed.judge:g} s, {job.judge.in_flight} at a time, take "
            f"{judge_time(job, assumed):.0f} s, and a step waits {waits:.0f} s for them: if its servers can take it, "
            f"allow {needed} at a time, of all model judges together (concurrency in their kwargs × reward.num_workers)"
        )
