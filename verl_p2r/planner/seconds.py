# SPDX-License-Identifier: Apache-2.0
"""Time of a step by phase, as arithmetic on operations and bytes."""

from collections.abc import Iterator
from math import ceil

from verl_p2r.planner.job import Assumed, Engine, Job, Line
from verl_p2r.planner.memory import cache_tokens
from verl_p2r.planner.sharing import kept_features, pass_tokens, text_operations, vision_operations


def step_time(job: Job, assumed: Assumed) -> list[Line]:
    """List the seconds of a step's phases, their sum, and the hours of the run if its steps are known.

    Args:
        job: the run.
        assumed: assumed figures.
    """
    training = [*_passes(job, assumed), *_moves(job, assumed)]
    seconds = sum(line.value for line in training)
    lines = training
    if job.rollout is None:
        whole, formula = seconds, "the sum"
    else:
        sampling = [*_generate(job, assumed)]
        generate = sum(line.value for line in sampling)
        if job.rollout.apart:
            whole = max(generate, seconds) + assumed.overhead
            formula = f"the longer of sampling ({generate:.0f} s) and training ({seconds:.0f} s), and"
        else:
            whole = generate + seconds + assumed.overhead
            formula = "the sum, and"
        formula += f" {assumed.overhead:g} s in which no GPU works"
        lines = [*sampling, *training]
    lines = [*lines, Line("a step", whole, "s", formula)]
    if job.steps:
        lines.append(Line("the run", whole * job.steps / 3600, "h", f"{job.steps:,} steps; validations not counted"))
    return lines


def judge_time(job: Job, assumed: Assumed) -> float:
    """Seconds that all verdicts of a step take.

    Args:
        job: the run.
        assumed: assumed figures.
    """
    return ceil(job.judge.calls / job.judge.in_flight) * assumed.judge if job.judge else 0.0


def _passes(job: Job, assumed: Assumed) -> Iterator[Line]:
    e = job.engine
    speed = e.gpus * job.gpu.operations * assumed.mfu
    rate = f"({e.gpus} GPUs × {job.gpu.operations / 1e12:.0f} T/s × {assumed.mfu:g})"
    text, vision = text_operations(job, job.rows), vision_operations(job, job.rows)
    later = vision * (1 - kept_features(job))  # for a pass that follows another one in the step
    passes = [name for name, there in (("old", job.old_log_prob), ("reference", job.reference)) if there]
    for n, name in enumerate(passes):
        seen = later if n else vision
        formula = f"({text / 1e15:.2f} + {seen / 1e15:.2f}) P operations / {rate}"
        yield Line(f"{name} log-prob", (text + seen) / speed, "s", formula)
    text_passes = (2 if e.lora_rank else 3) + int(e.checkpointing)  # frozen weights need no gradient
    vision_passes = text_passes if e.trains_vision else 1
    seen = later if passes else (vision + (e.epochs - 1) * later) / e.epochs
    seconds = e.epochs * (text_passes * text + vision_passes * seen) / speed
    formula = f"({text_passes} × {text / 1e15:.2f} + {vision_passes} × {seen / 1e15:.2f}) P operations / {rate}"
    formula += f" × {e.epochs} epochs" if e.epochs > 1 else ""
    sent, how = _communication(job, assumed)
    if sent > seconds:
        seconds, formula = sent, f"{how}, longer than {formula}"
    yield Line("update", seconds, "s", formula)


def _communication(job: Job, assumed: Assumed) -> tuple[float, str]:
    """Seconds in which FSDP gathers weights for two passes and reduces gradients, over all micro-batches."""
    e = job.engine
    if e.fsdp_size == 1:
        return 0.0, ""
    link = _link(e, assumed)
    groups = e.gpus // e.ulysses_size
    tokens = pass_tokens(job) / groups / e.mini_batches / e.ulysses_size
    batches = max(1, ceil(tokens / e.tokens)) * e.mini_batches * e.epochs
    sent = batches * (2 * e.compute_bytes * job.all_params + 4 * job.trained)
    how = f"{batches} micro-batches × (2 × {e.compute_bytes} B × {job.all_params / 1e9:.2f} G + 4 B × "
    return sent / link, how + f"{job.trained / 1e9:.2f} G) / {link / 1e9:.0f} GB/s"


def _link(engine: Engine, assumed: Assumed) -> float:
    """Bytes per second at which a GPU gathers; data of other nodes arrives once, over all links of the node."""
    if engine.fsdp_size <= engine.per_node:
        return assumed.node_link
    return min(assumed.node_link, assumed.net_link * engine.per_node)


def _moves(job: Job, assumed: Assumed) -> Iterator[Line]:
    """Time to move weights and optimizer between host and GPU, and weights to vLLM."""
    e, passes = job.engine, 2 + job.old_log_prob if job.rollout else 1
    moved, how = 0.0, []
    if e.param_offload:
        moved += 2 * passes * e.param_bytes * job.all_params / e.fsdp_size
        how.append(f"2 × {passes} × {e.param_bytes} B × {job.all_params / 1e9:.2f} G / {e.fsdp_size}")
    if e.optimizer_offload:
        moved += 2 * 2 * e.param_bytes * job.trained / e.fsdp_size
        how.append(f"2 × 2 × {e.param_bytes} B × {job.trained / 1e9:.2f} G / {e.fsdp_size}")
    if e.policy_offload:
        inferring = (job.old_log_prob + (job.reference and not job.own_reference)) * _batches(job, e.infer_tokens)
        gathers = inferring + 2 * e.epochs * _batches(job, e.tokens)  # forwards and backwards in the update
        moved += gathers * e.param_bytes * job.all_params / e.fsdp_size
        how.append(f"{gathers} × {e.param_bytes} B × {job.all_params / 1e9:.2f} G / {e.fsdp_size}")
    if job.own_reference:
        batches = _batches(job, e.infer_tokens)
        moved += batches * e.param_bytes * job.shape.params / e.fsdp_size
        how.append(
            f"{batches} micro-batches of the reference × {e.param_bytes} B × {job.shape.params / 1e9:.2f} G / "
            f"{e.fsdp_size}"
        )
    if moved:
        yield Line(
            "to and from host memory",
            moved / assumed.host_link,
            "s",
            f"({' + '.join(how)}) / {assumed.host_link / 1e9:.0f} GB/s",
        )
    if job.rollout is not None:
        link = _link(e, assumed)
        whole = (e.param_bytes + job.rollout.dtype_bytes) * job.shape.params
        formula = (
            f"({e.param_bytes} + {job.rollout.dtype_bytes}) B × {job.shape.params / 1e9:.2f} G / {link / 1e9:.0f} GB/s"
        )
        yield Line("weight sync", whole / link, "s", formula)


def _batches(job: Job, budget: float) -> int:
    """Micro-batches of a GPU in one pass over a step's rows."""
    return max(
        1, ceil(pass_tokens(job) / (job.engine.gpus // job.engine.ulysses_size) / job.engine.ulysses_size / budget)
    )


def _generate(job: Job, assumed: Assumed) -> Iterator[Line]:
    r, s, ln, gpu = job.rollout, job.shape, job.lengths, job.gpu
    assert r is not None
    servers = max(1, r.gpus // r.tensor)
    rows = ceil(job.rows / servers)
    at_once = int(max(1, min(rows, r.max_rows, cache_tokens(job, assumed)[0] // ln.row)))
    waves = ceil(rows / at_once)
    weights = r.dtype_bytes * (s.params - s.vision_params) / r.tensor
    cache = at_once * (ln.prompt + ln.response / 2) * s.kv_bytes(r.dtype_bytes) / min(r.tensor, s.kv_heads)
    token = (weights + cache) / (gpu.bandwidth * assumed.decoding)
    generate = waves * ln.long_response * token
    yield Line(
        "generate",
        generate,
        "s",
        f"{waves} × {ln.long_response:.0f} tokens × ({r.dtype_bytes} B × {(s.params - s.vision_params) / 1e9:.2f} G / "
        f"{r.tensor} + {at_once} rows × {ln.prompt + ln.response / 2:,.0f} tokens × {s.kv_bytes(r.dtype_bytes):,} B / "
        f"{min(r.tensor, s.kv_heads)}) / "
        f"({gpu.bandwidth / 1e12:.2f} TB/s × {assumed.decoding:g})",
    )
    copies = min(job.samples, servers)  # a prompt's responses are spread over the servers
    text = s.text_operations([ln.prompt]) * job.prompts * copies
    vision = s.vision_operations(job.patches, ln.grid) * job.prompts * copies
    yield Line(
        "prefill",
        (text + vision) / (r.gpus * gpu.operations * assumed.mfu),
        "s",
        f"{job.prompts} prompts on {copies} servers each: ({text / 1e15:.2f} + {vision / 1e15:.2f}) P operations / "
        f"({r.gpus} GPUs × {gpu.operations / 1e12:.0f} T/s × {assumed.mfu:g})",
    )
    yield from _second_answers(job, assumed, generate)
    if job.judge is not None:
        asked = judge_time(job, assumed)
        remaining = max(assumed.judge, asked - generate)
        yield Line(
            "judge, after the last response",
            remaining,
            "s",
            f"max({assumed.judge:g} s, ⌈{job.judge.calls:,} calls / {job.judge.in_flight} in flight⌉ × "
            f"{assumed.judge:g} s - generate)",
        )


def _second_answers(job: Job, assumed: Assumed, generate: float) -> Iterator[Line]:
    """Time of the second answers as if nothing overlapped: their prompts' prefill, and as many more decoding steps.

    All second answers to a question go to one server, whose prefix cache keeps the question's text.
    """
    if job.second_answers is None or job.rollout is None:
        return
    second, s, ln = job.second_answers, job.shape, job.lengths
    observed = s.text_operations([ln.text + second.observation]) - s.text_operations([ln.text])
    operations = job.rows * observed + job.prompts * s.text_operations([ln.text])
    prefill = operations / (job.rollout.gpus * job.gpu.operations * assumed.mfu)
    decoding = generate * second.answer / ln.long_response
    yield Line(
        "second answers",
        prefill + decoding,
        "s",
        f"{job.rows:,} observations × {second.observation:.0f} tokens and {job.prompts} questions × {ln.text:.0f}: "
        f"{operations / 1e15:.2f} P operations / ({job.rollout.gpus} GPUs × {job.gpu.operations / 1e12:.0f} T/s × "
        f"{assumed.mfu:g}) + generate × {second.answer:.0f} / {ln.long_response:.0f} tokens",
    )
