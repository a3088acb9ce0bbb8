# SPDX-License-Identifier: Apache-2.0
"""What of a planned run will not fit, or will not run at all."""

from collections.abc import Iterator
from math import ceil

from verl_p2r.planner.job import GIB, PHASES, Assumed, Job, total
from verl_p2r.planner.memory import cache_tokens, memory
from verl_p2r.planner.seconds import judge_time, step_time


def faults(job: Job, assumed: Assumed) -> Iterator[str]:
    """What will not fit, or will not run."""
    lines = memory(job, assumed)
    for phase in PHASES if job.rollout else ("update",):
        if (used := total(lines, phase)) > job.gpu.memory:
            most = max((line for line in lines if phase in line.phases), key=lambda line: line.value)
            yield (
                f"GPU memory: {phase} takes {used / GIB:.0f} GiB of {job.gpu.memory / GIB:.0f}, most of it {most.name} "
                f"({most.value / GIB:.0f} GiB): offload, cut over more GPUs, or lower the token budget or vLLM's share"
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
            f"prompt: media of up to {ln.worst_media} tokens and about {ln.text:.0f} of text are more than {room:.0f}: "
            "raise the limit, or take fewer or smaller frames"
        )
    if ln.longest > job.shape.context:
        yield f"length: rows of up to {ln.longest} tokens are more than the model's context of {job.shape.context}"
    for name, budget in (("update", e.tokens), *((("log-prob", e.infer_tokens),) if job.rollout else ())):
        if budget * e.parallel < ln.longest:
            yield (
                f"token budget: {budget:.0f} tokens a GPU × {e.parallel} GPUs of a sequence in {name} are less than "
                f"one row of up to {ln.longest}: raise it to {ceil(ln.longest / e.parallel)}"
            )


def _parts_at_fault(job: Job) -> Iterator[str]:
    e, s = job.engine, job.shape
    if e.gpus % e.parallel or s.heads % e.parallel or (s.kv_heads % e.parallel and e.parallel % s.kv_heads):
        yield (
            f"sequence parallelism: {e.gpus} GPUs, {s.heads} heads and {s.kv_heads} key heads must divide by "
            f"{e.parallel}"
        )
        return
    if e.gpus % e.shard:
        yield f"fsdp_size: {e.gpus} GPUs do not divide by {e.shard}"
    if job.prompts % e.mini_batches:
        yield f"batch: {job.prompts} prompts do not divide into {e.mini_batches} mini-batches"
    groups = e.gpus // e.parallel
    if job.rows / e.mini_batches % groups:
        yield (
            f"batch: {job.rows / e.mini_batches:g} rows of an update do not divide over {groups} groups of GPUs: "
            f"take a multiple"
        )


def _sampling_at_fault(job: Job, assumed: Assumed) -> Iterator[str]:
    r, s, ln = job.rollout, job.shape, job.lengths
    assert r is not None
    if ln.longest > r.max_length:
        yield (
            f"length: prompt and response of up to {ln.longest} tokens are more than max_model_len={r.max_length}: "
            "raise it"
        )
    if r.max_length > s.context:
        yield f"length: max_model_len={r.max_length} is more than the model's context of {s.context}: lower it"
    if r.gpus % r.tensor or s.heads % r.tensor:
        yield f"tensor parallelism: {r.gpus} GPUs and {s.heads} heads must both divide by {r.tensor}"
    if cache_tokens(job, assumed)[0] < r.max_length:
        yield (
            f"vLLM: its share of {r.share:g} leaves no room for the keys and values of one row of {r.max_length} "
            "tokens: raise gpu_memory_utilization or tensor_model_parallel_size"
        )
    pixels = job.prompts * job.patches * s.vision.patch * 4
    if 0 < job.pixel_store < pixels:
        yield (
            f"pixels: a step's {pixels / GIB:.1f} GiB are more than the {job.pixel_store / GIB:.1f} GiB kept: they are "
            "made again, which is slow: raise data.p2r.media_cache.pixels_gib"
        )
    yield from _judge_at_fault(job, assumed)


def _judge_at_fault(job: Job, assumed: Assumed) -> Iterator[str]:
    if job.judge is None:
        return
    times = {line.name: line.value for line in step_time(job, assumed)}
    waits = times["judge, behind the last response"]
    if waits > assumed.judge and waits > 0.1 * times["a step"]:
        needed = ceil(job.judge.calls * assumed.judge / max(times["generate"], assumed.judge))
        yield (
            f"judge: {job.judge.calls} calls of {assumed.judge:g} s, {job.judge.in_flight} at a time, take "
            f"{judge_time(job, assumed):.0f} s, and {waits:.0f} s of a step are spent waiting: let {needed} be in "
            "flight (algorithm.p2r.judge.kwargs.concurrency × reward.num_workers), if its servers bear it"
        )
