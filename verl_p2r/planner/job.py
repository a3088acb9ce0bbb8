# SPDX-License-Identifier: Apache-2.0
"""A run as the planner sees it: sizes, counts and lengths, without verl's config around them."""

from collections.abc import Iterable
from dataclasses import dataclass

from verl_p2r.planner.model_shape import ModelShape

GIB = 2**30
PHASES = ("generate", "log-prob", "update", "weight sync")


@dataclass(frozen=True)
class Gpu:
    """A GPU by its maker's figures.

    Args:
        memory: bytes that programs can have.
        operations: bfloat16, dense, in a second.
        bandwidth: of its memory, in bytes a second.
    """

    memory: float
    operations: float
    bandwidth: float


GPUS = {
    "A100-40GB": Gpu(39.4 * GIB, 312e12, 1.56e12),
    "A100": Gpu(79.2 * GIB, 312e12, 2.04e12),
    "H100": Gpu(79.2 * GIB, 989e12, 3.35e12),
    "H200": Gpu(139.8 * GIB, 989e12, 4.8e12),
}


@dataclass(frozen=True)
class Assumed:
    """What is not known before a measurement [ours].

    Args:
        mfu: share of the GPU's operations that passes over whole sequences reach.
        decoding: share of its memory's bandwidth that sampling reaches.
        node_link, host_link, net_link: bytes a second of a GPU to others of its node, to host memory, to other nodes.
        process: bytes of a trainer's process on its GPU that are no tensors: CUDA, NCCL, fragments.
        vllm_asleep: bytes that vLLM keeps while it sleeps: CUDA, NCCL, CUDA graphs.
        vllm_working: bytes that vLLM keeps free of its cache for a step's activations.
        overhead: seconds of a step in which no GPU works.
        judge: seconds of a verdict.
    """

    mfu: float = 0.35
    decoding: float = 0.6
    node_link: float = 100e9
    host_link: float = 20e9
    net_link: float = 25e9
    process: float = 2 * GIB
    vllm_asleep: float = 2.5 * GIB
    vllm_working: float = 4 * GIB
    overhead: float = 8.0
    judge: float = 2.0


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row, as they usually are and at most.

    Args:
        text, media, response: usual tokens.
        grid: patches of a temporal grid of the usual medium.
        worst_media: most tokens of media.
        prompt_limit, response_limit: the config's, in tokens; for SFT they share `max_length`.
        long_response: the longest response of a batch, usually.
    """

    text: float
    media: float
    response: float
    grid: float
    worst_media: int
    prompt_limit: int
    response_limit: int
    long_response: float

    @property
    def prompt(self) -> float:
        return self.text + self.media

    @property
    def row(self) -> float:
        return self.prompt + self.response

    @property
    def longest(self) -> int:
        return self.prompt_limit + self.response_limit


@dataclass(frozen=True)
class Engine:
    """verl's FSDP engine.

    Args:
        gpus, per_node: GPUs that train, and of them in a node.
        shard: over how many the weights are cut.
        parallel: over how many a sequence is cut (Ulysses).
        width, compute: bytes of a stored weight, and of a gathered one.
        param_offload, optimizer_offload: kept in host memory outside of their phases; `policy_offload`: always (FSDP2).
        checkpointing: activations of a layer are computed again.
        tokens, infer_tokens: most tokens of a micro-batch on a GPU, with gradients and without.
        mini_batches, epochs: updates in a step.
        entropy: of the update's tokens is computed; `fused`: logits are never whole.
        defers_sync: gradients stay whole until the last micro-batch.
        lora_rank: 0 to train all weights; `lora_vision`: adapters in the vision tower, too.
        fsdp2: verl's strategy `fsdp2`, not `fsdp`.
        frozen_vision: the vision tower is not trained.
        shares_prefix: a prompt is computed once for all its responses.
        features: bytes of a frozen tower's features that a GPU's process may keep for a step.
    """

    gpus: int
    per_node: int
    shard: int
    parallel: int = 1
    width: int = 4
    compute: int = 2
    param_offload: bool = False
    optimizer_offload: bool = False
    policy_offload: bool = False
    checkpointing: bool = True
    tokens: float = 16384
    infer_tokens: float = 16384
    mini_batches: int = 1
    epochs: int = 1
    entropy: bool = False
    fused: bool = False
    defers_sync: bool = False
    lora_rank: int = 0
    lora_vision: bool = False
    fsdp2: bool = False
    frozen_vision: bool = False
    shares_prefix: bool = False
    features: float = 0

    @property
    def trains_vision(self) -> bool:
        return self.lora_vision if self.lora_rank else not self.frozen_vision


@dataclass(frozen=True)
class Rollout:
    """vLLM's servers.

    Args:
        gpus: that sample; `apart`: they do nothing else.
        tensor: over how many a server is cut.
        share: of the GPU's memory that vLLM takes.
        sleeps: it gives the memory back while the trainer works.
        max_length, max_rows: most tokens of a row, and rows at a time on a server.
        width: bytes of a number.
        bucket: bytes of weights sent at a time.
    """

    gpus: int
    tensor: int
    share: float
    sleeps: bool
    max_length: int
    max_rows: int
    width: int = 2
    bucket: float = 2 * GIB
    apart: bool = False


@dataclass(frozen=True)
class Judging:
    """The judge: how often it is asked in a step at most, and how many calls are in flight at once."""

    calls: int
    in_flight: int


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        shape: of the model.
        gpu: that it runs on.
        lengths: of its rows.
        engine: that trains.
        prompts, samples: prompts of a step, and responses to each; rows of a step and 1 for SFT.
        steps: of the run, None when unknown.
        rollout: None for SFT; likewise the rest.
        reference: a reference model gives log-probabilities; with LoRA it is the model itself.
        old_log_prob: log-probabilities are computed before the update.
        judge: None when none is asked over a network.
        pixel_store, media_store: bytes of pixels and of decoded media that all agent loop workers may keep.
    """

    shape: ModelShape
    gpu: Gpu
    lengths: Lengths
    engine: Engine
    prompts: int
    samples: int = 1
    steps: int | None = None
    rollout: Rollout | None = None
    reference: bool = False
    old_log_prob: bool = False
    judge: Judging | None = None
    pixel_store: float = 0
    media_store: float = 0

    @property
    def rows(self) -> int:
        """Sequences of a step."""
        return self.prompts * self.samples

    @property
    def patches(self) -> float:
        """Patches of a usual row."""
        return self.lengths.media * self.shape.vision.merge

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        if self.engine.lora_rank:
            return self.shape.lora_params(self.engine.lora_rank, self.engine.lora_vision)
        return self.shape.params - (self.shape.vision_params if self.engine.frozen_vision else 0)

    @property
    def all_params(self) -> int:
        return self.shape.params + (self.trained if self.engine.lora_rank else 0)

    @property
    def own_reference(self) -> bool:
        """The reference is a model of its own."""
        return self.reference and not self.engine.lora_rank

    def micro_tokens(self, budget: float) -> float:
        """Tokens that a GPU has at a time: the budget, or all it gets of a mini-batch of the longest rows."""
        groups = self.engine.gpus // self.engine.parallel
        share = 1 / self.engine.mini_batches / groups
        if self.engine.shares_prefix:
            tokens = self.lengths.prompt_limit + self.samples * self.lengths.response_limit
            return min(budget, max(1, self.prompts * share) * tokens)
        return min(budget, max(1, self.rows * share) * self.lengths.longest / self.engine.parallel)


@dataclass(frozen=True)
class Line:
    """A figure and where it comes from.

    Args:
        name: what it is.
        value: how much.
        unit: `tokens`, `B`, `calls`, `s` or `h`.
        formula: with the numbers put in.
        phases: of memory, when it is taken.
    """

    name: str
    value: float
    unit: str
    formula: str
    phases: tuple[str, ...] = ()


def total(lines: Iterable[Line], phase: str) -> float:
    """Bytes taken in a phase."""
    return sum(line.value for line in lines if phase in line.phases)


def giga(params: float) -> str:
    """Parameters as text.

    >>> giga(8_292_166_656)
    '8.292 G'
    """
    return f"{params / 1e9:.3f} G"
