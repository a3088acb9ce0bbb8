# SPDX-License-Identifier: Apache-2.0
"""Memory of a GPU and of a node, and bytes moved in a step."""

from collections.abc import Iterator
from math import ceil

from verl_p2r.planner.job import PHASES, Assumed, Job, Line, giga
from verl_p2r.planner.model_shape import ModelShape
from verl_p2r.planner.sharing import features_bytes, gathered_share, kept_features, logit_share, media_share
from verl_p2r.sizes import GIB


def memory(job: Job, assumed: Assumed) -> list[Line]:
    """List the memory of a GPU that trains, by part and phase.

    Args:
        job: the run.
        assumed: assumed figures.
    """
    rl = job.rollout is not None
    lines = [*_states(job), *_gathered(job), *_activations(job)]
    lines.append(Line("process", assumed.process, "B", "assumed: CUDA context, NCCL, fragmentation", PHASES))
    if rl:
        lines += _sampling(job, assumed)
    shown = PHASES if rl else ("update",)
    lines = [Line(x.name, x.value, x.unit, x.formula, tuple(p for p in x.phases if p in shown)) for x in lines]
    return [line for line in lines if line.value and line.phases]


def _states(job: Job) -> Iterator[Line]:
    e, params, trained, size = job.engine, giga(job.all_params), giga(job.trained), job.engine.param_bytes
    passes = PHASES[1:] if e.param_offload else PHASES
    if e.policy_offload:
        return
    weights = size * job.all_params / e.fsdp_size
    yield Line("weights", weights, "B", f"{size} B × {params} / {e.fsdp_size}", passes)
    held = ("update",) if e.optimizer_offload else PHASES
    optimizer = 2 * size * job.trained / e.fsdp_size
    yield Line("optimizer", optimizer, "B", f"2 × {size} B × {trained} / {e.fsdp_size} (AdamW)", held)
    value: float
    if e.defers_sync:
        value, formula = e.compute_bytes * job.trained, f"{e.compute_bytes} B × {trained}, unsharded"
    else:
        value, formula = size * job.trained / e.fsdp_size, f"{size} B × {trained} / {e.fsdp_size}"
    yield Line("gradients", value, "B", formula, ("update",))


def _gathered(job: Job) -> Iterator[Line]:
    """FSDP gathers its root for a whole pass and layers one ahead, and does the same for the reference."""
    e, s = job.engine, job.shape
    if e.fsdp_size > 1 or e.compute_bytes != e.param_bytes:
        units = e.compute_bytes * (s.root_params + 2 * s.layer_params)
        formula = f"{e.compute_bytes} B × ({giga(s.root_params)} outside layers + 2 × {giga(s.layer_params)} per layer)"
        yield Line("gathered weights", units, "B", formula, PHASES[1:3])
        if job.own_reference:
            yield Line("reference, gathered", units, "B", f"{formula}; the rest is in host memory", ("log-prob",))
        if not e.lora_rank:
            grads = e.compute_bytes * (s.root_params + s.layer_params)
            formula = f"{e.compute_bytes} B × ({giga(s.root_params)} + {giga(s.layer_params)}), before they are reduced"
            yield Line("gathered gradients", grads, "B", formula, ("update",))


def text_activations(shape: ModelShape) -> int:
    """Bytes per token that the backward pass of a decoder layer needs, in bfloat16 with norms in float32.

    These are the saved tensors, 8 × inner of them the MLP's, and 4 × inner for gradients in flight.

    Args:
        shape: shape of the model.
    """
    return 16 * shape.hidden + 6 * shape.queries + 8 * shape.keys + 12 * shape.inner


def vision_activations(shape: ModelShape) -> int:
    """Bytes per patch that the backward pass of a vision block needs, like `text_activations`.

    Args:
        shape: shape of the model.
    """
    return 30 * shape.vision.width + (12 if shape.family.tower.gated else 6) * shape.vision.inner


def _activations(job: Job) -> Iterator[Line]:
    e, s, v = job.engine, job.shape, job.shape.vision
    for phase, budget in (("log-prob", e.infer_tokens), ("update", e.tokens)):
        tokens, train = job.micro_tokens(budget), phase == "update"
        patches = tokens * media_share(job) * v.merge  # a GPU of a cut sequence has its share of the frames
        text = e.compute_bytes / 2 * tokens * text_activations(s)
        vision = e.compute_bytes / 2 * patches * vision_activations(s)
        work = f"{tokens:,.0f} tokens × (16 × {s.hidden} + 6 × {s.queries} + 8 × {s.keys} + 12 × {s.inner}) B"
        keeps_vision = v.depth if e.trains_vision else 0
        if train and e.checkpointing:
            kept = e.compute_bytes * (tokens * s.hidden * s.layers + patches * v.width * keeps_vision)
            formula = f"{e.compute_bytes} B × ({tokens:,.0f} tokens × {s.hidden} × {s.layers} layers"
            formula += f" + {patches:,.0f} patches × {v.width} × {keeps_vision} blocks)"
            yield Line("checkpoints of layers", kept, "B", formula, (phase,))
        if train and not e.checkpointing:
            value, formula = (
                text * s.layers + vision * keeps_vision,
                f"{s.layers} layers × {work}, and the vision tower's",
            )
        else:
            value, formula = max(text, vision), f"{work}, or the same of {patches:,.0f} patches of the vision tower"
        yield Line("activations of a layer" if e.checkpointing else "activations", value, "B", formula, (phase,))
        if not e.fused:
            copies = 2 if (e.entropy or not train) else 1
            logits = tokens * logit_share(job)
            formula = f"{copies} × {e.compute_bytes} B × {logits:,.0f} tokens × {s.vocab}"
            formula += " (a second copy for the entropy)" if copies == 2 else " (gradients take their place)"
            yield Line("logits", copies * e.compute_bytes * logits * s.vocab, "B", formula, (phase,))
        gathered = e.compute_bytes * 2 * s.keys * tokens * gathered_share(job)
        layers = s.layers if train and not e.checkpointing else 1
        formula = f"{layers} layers × {e.compute_bytes} B × 2 × {s.keys} × {tokens * gathered_share(job):,.0f} keys"
        yield Line("keys and values of shared prefixes", layers * gathered, "B", formula, (phase,))
        pixels = patches * v.patch * (4 + e.compute_bytes)
        yield Line("pixels", pixels, "B", f"{patches:,.0f} patches × {v.patch} × (4 + {e.compute_bytes}) B", (phase,))


def _sampling(job: Job, assumed: Assumed) -> Iterator[Line]:
    r, s = job.rollout, job.shape
    assert r is not None
    awake = PHASES[:1] if r.sleeps else PHASES
    yield Line("vLLM", r.share * job.gpu.memory, "B", f"{r.share:g} × {job.gpu.memory / GIB:.1f} GiB", awake)
    weights = r.dtype_bytes * s.params / r.tensor
    if r.sleeps:
        yield Line("vLLM asleep", assumed.vllm_asleep, "B", "assumed: CUDA context, NCCL, CUDA graphs", PHASES[1:])
        yield Line(
            "vLLM's weights", weights, "B", f"{r.dtype_bytes} B × {giga(s.params)} / {r.tensor}", ("weight sync",)
        )
    whole, formula = _summoned(job)
    formula += f" + {r.bucket / GIB:g} GiB of buckets"
    yield Line("weights in transit", whole + r.bucket, "B", formula, ("weight sync",))


def _summoned(job: Job) -> tuple[float, str]:
    """Bytes that the trainer gathers to send its weights; with LoRA only adapters are sent, but FSDP1 gathers all."""
    e, s, size = job.engine, job.shape, job.engine.param_bytes
    if e.lora_rank:
        gathers = e.fsdp_size > 1 and not e.fsdp2
        return (size * job.all_params, f"{size} B × {giga(job.all_params)}") if gathers else (0, "adapters only")
    if e.fsdp2:
        return size * s.embedding_params, f"{size} B × {giga(s.embedding_params)} of the largest tensor"
    parts = (s.root_params, s.layer_params)
    formula = f"{size} B × ({giga(parts[0])} + {giga(parts[1])} + {giga(job.all_params)} / {e.fsdp_size})"
    return size * (sum(parts) + job.all_params / e.fsdp_size), formula


def cache_tokens(job: Job, assumed: Assumed) -> tuple[float, str]:
    """Compute how many tokens the key-value cache of a vLLM server holds.

    Args:
        job: an RL run.
        assumed: assumed figures.

    Returns:
        The tokens, below 0 when the weights do not fit; and the formula.
    """
    r, s = job.rollout, job.shape
    assert r is not None
    room = r.share * job.gpu.memory - r.dtype_bytes * s.params / r.tensor - assumed.vllm_working
    shards = min(r.tensor, s.kv_heads)  # with more GPUs than heads, vLLM copies heads
    formula = (
        f"({r.share:g} × {job.gpu.memory / GIB:.1f} GiB - {r.dtype_bytes} B × {giga(s.params)} / {r.tensor} "
        f"- {assumed.vllm_working / GIB:g} GiB) × {shards} / {s.kv_bytes(r.dtype_bytes):,} B per token"
    )
    return room * shards / s.kv_bytes(r.dtype_bytes), formula


def host(job: Job) -> list[Line]:
    """List the memory of a node.

    Args:
        job: the run.
    """
    e, r, s = job.engine, job.rollout, job.shape
    per = min(e.gpus, e.per_node)
    lines = []

    def states(name: str, copies: int, params: int) -> None:
        formula = f"{copies} × {e.param_bytes} B × {giga(params)} / {e.fsdp_size} × {per} GPUs"
        lines.append(Line(name, copies * e.param_bytes * params / e.fsdp_size * per, "B", formula))

    if e.param_offload or e.policy_offload:
        states("weights, offloaded", 1, job.all_params)
    if e.optimizer_offload or e.policy_offload:
        states("optimizer, offloaded", 2, job.trained)
    if job.own_reference:
        states("reference (always offloaded)", 1, s.params)
    if r is not None and r.sleeps and e.lora_rank:
        lines.append(
            Line(
                "vLLM's weights while it sleeps",
                r.dtype_bytes * s.params * per / r.tensor,
                "B",
                f"{r.dtype_bytes} B × {giga(s.params)} × {per} GPUs / {r.tensor}",
            )
        )
    if kept_features(job):
        kept = min(e.features, features_bytes(job))
        formula = f"{kept / GIB:.2f} GiB × {per} GPUs: features of the frozen vision tower"
        lines.append(Line("vision features of a step", kept * per, "B", formula))
    if job.pixel_store:
        nodes = ceil(e.gpus / e.per_node)
        how = f"× agent loop workers / {nodes} nodes, at most"
        lines.append(Line("pixels in Ray's object store", job.pixel_store / nodes, "B", f"pixels_gib {how}"))
        lines.append(Line("decoded media", job.media_store / nodes, "B", f"memory_gib {how}"))
    loading = per if s.tied else 1
    formula = (
        f"{e.param_bytes} B × {giga(s.params)} × {loading} (verl loads a tied model in every process, others in one)"
    )
    lines.append(Line("while the model is loaded", e.param_bytes * s.params * loading, "B", formula))
    return lines


def traffic(job: Job) -> list[Line]:
    """List the bytes moved in a step.

    Args:
        job: the run.
    """
    v, ln = job.shape.vision, job.lengths
    pixels = job.patches * v.patch
    values = f"{job.patches:,.0f} patches × {v.patch}"
    if job.rollout is None:
        return [Line("pixels to the GPUs", job.rows * pixels * 4, "B", f"{job.rows} rows × {values} × 4 B")]
    passes = 1 * job.engine.epochs + job.old_log_prob + job.reference
    row = ln.row * 48 + ln.response * 48
    replicas = max(1, job.rollout.gpus // job.rollout.tensor)
    params = job.trained if job.engine.lora_rank else job.shape.params
    return [
        Line(
            "pixels into Ray's object store", job.prompts * pixels * 4, "B", f"{job.prompts} prompts × {values} × 4 B"
        ),
        Line(
            "pixels out of it to the GPUs",
            job.rows * pixels * 4 * passes * job.engine.ulysses_size,
            "B",
            f"{job.rows} rows × {values} × 4 B × {passes} passes × {job.engine.ulysses_size} GPUs of a sequence",
        ),
        Line("frames to vLLM", job.rows * pixels, "B", f"{job.rows} rows × {values} × 1 B"),
        Line(
            "TransferQueue",
            job.rows * row,
            "B",
            f"{job.rows} rows × ({ln.row:,.0f} tokens × 48 B (ids, mask, 4 positions) + {ln.response:,.0f} × 48 B "
            "(mask, log-probabilities, advantages))",
        ),
        Line("weights to vLLM", 2 * params * replicas, "B", f"2 B × {giga(params)} × {replicas} servers"),
    ]
