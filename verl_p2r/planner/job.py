# SPDX-License-Identifier: Apache-2.0
"""A run in the planner's terms: sizes, counts and lengths instead of verl's config."""

from collections.abc import Iterable
from dataclasses import dataclass

from verl_p2r.planner.model_shape import ModelShape
from verl_p2r.sizes import GIB

PHASES = ("generate", "log-prob", "update", "weight sync")


@dataclass(frozen=True)
class Gpu:
    """A GPU by its maker's figures.

    Args:
        memory: memory that programs can use, in bytes.
        operations: dense bfloat16 operations per second.
        bandwidth: memory bandwidth, in bytes per second.
    """

    memory: float
    operations: float
    bandwidth: float


GPUS = {
    "A100-40GB": Gpu(39.4 * GIB, 312e12, 1.56e12),
    "A100": Gpu(79.2 * GIB, 312e12, 2.04e12),
    "H100": Gpu(79.2 * GIB, 989e12, 3.35e12),
    "H200": Gpu(139.8 * GIB, 989e12, 4.8e12),
    "L40S": Gpu(44.4 * GIB, 362e12, 0.86e12),
    "RTX4090": Gpu(23.6 * GIB, 165e12, 1.01e12),
}


@dataclass(frozen=True)
class Assumed:
    """Figures that are assumed until they are measured [ours].

    Args:
        mfu: share of the GPU's operations that passes over whole sequences reach.
        decoding: share of its memory bandwidth that sampling reaches.
        node_link: bytes per second between a GPU and the others of its node.
        host_link: bytes per second between a GPU and host memory.
        net_link: bytes per second between a GPU and other nodes.
        process: non-tensor GPU memory of a trainer process (CUDA context, NCCL, fragmentation), in bytes.
        vllm_asleep: memory that vLLM keeps while it sleeps (CUDA context, NCCL, CUDA graphs), in bytes.
        vllm_working: memory that vLLM keeps out of its cache for activations, in bytes.
        overhead: seconds of a step in which no GPU works.
        judge: seconds per verdict.
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
    """Tokens of a row: usual values and limits.

    Args:
        text: usual tokens of the prompt's text.
        media: usual tokens of its media.
        response: usual tokens of the response.
        grid: patches in one temporal grid of the usual medium.
        worst_media: most tokens of media.
        prompt_limit: the config's limit, in tokens.
        response_limit: the config's limit, in tokens; for SFT both limits add up to `max_length`.
        long_response: usual tokens of the longest response in a batch.
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
        """Usual tokens of a prompt."""
        return self.text + self.media

    @property
    def row(self) -> float:
        """Usual tokens of a prompt and its response."""
        return self.prompt + self.response

    @property
    def longest(self) -> int:
        """Most tokens of a row."""
        return self.prompt_limit + self.response_limit


@dataclass(frozen=True)
class Engine:
    """verl's FSDP engine.

    Args:
        gpus: GPUs that train.
        per_node: GPUs that train in one node.
        fsdp_size: GPUs that share the weights.
        ulysses_size: GPUs that share a sequence (Ulysses).
        param_bytes: bytes per stored weight.
        compute_bytes: bytes per gathered weight and activation.
        param_offload: weights are in host memory outside the phases that need them.
        optimizer_offload: the optimizer is in host memory outside the update.
        policy_offload: FSDP2's offload policy keeps both in host memory all the time.
        checkpointing: activations inside a layer are recomputed.
        tokens: most tokens of a micro-batch on a GPU with gradients.
        infer_tokens: most tokens of a micro-batch on a GPU without gradients.
        mini_batches: updates in a step.
        epochs: passes over a step's rows.
        entropy: the entropy of the update's tokens is computed.
        fused: logits are never materialized as a whole.
        defers_sync: gradients stay unsharded until the last micro-batch.
        lora_rank: rank of the adapters; 0 trains all weights.
        lora_vision: the vision tower has adapters as well.
        fsdp2: verl's strategy is `fsdp2` instead of `fsdp`.
        frozen_vision: the vision tower is not trained.
        shares_prefix: a prompt is computed once for all its responses.
        features: bytes of a frozen tower's features that a GPU's process may keep for a step.
    """

    gpus: int
    per_node: int
    fsdp_size: int
    ulysses_size: int = 1
    param_bytes: int = 4
    compute_bytes: int = 2
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
        """Whether the vision tower gets gradients."""
        return self.lora_vision if self.lora_rank else not self.frozen_vision


@dataclass(frozen=True)
class Rollout:
    """vLLM's servers.

    Args:
        gpus: GPUs that sample.
        tensor: GPUs of one server.
        share: share of the GPU's memory that vLLM takes.
        sleeps: vLLM gives the memory back while the trainer works.
        max_length: most tokens of a row.
        max_rows: most rows at a time on one server.
        dtype_bytes: bytes per weight and per cached number.
        bucket: bytes of weights sent at a time.
        apart: the GPUs that sample do nothing else.
    """

    gpus: int
    tensor: int
    share: float
    sleeps: bool
    max_length: int
    max_rows: int
    dtype_bytes: int = 2
    bucket: float = 2 * GIB
    apart: bool = False


@dataclass(frozen=True)
class Judging:
    """The judge.

    Args:
        calls: most calls in a step.
        in_flight: calls at the same time.
    """

    calls: int
    in_flight: int


@dataclass(frozen=True)
class SecondAnswers:
    """The policy's second answers, one for each response, which the judge `self` reads.

    Args:
        observation: usual tokens of the observation from which it answers.
        answer: usual tokens of the answer.
    """

    observation: float
    answer: float


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        shape: shape of the model.
        gpu: the kind of GPU.
        lengths: lengths of the rows.
        engine: the engine that trains.
        prompts: prompts in a step; for SFT, rows.
        samples: responses to a prompt; 1 for SFT.
        steps: steps of the run; None when unknown.
        rollout: vLLM; None for SFT.
        reference: a reference model computes log-probabilities; with LoRA it is the model without adapters.
        old_log_prob: log-probabilities are computed before the update.
        judge: None when no judge is asked over a network.
        second_answers: None when the policy does not answer a second time.
        pixel_store: bytes of pixels that all agent loop workers may keep.
        media_store: bytes of decoded media that all agent loop workers may keep.
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
    second_answers: SecondAnswers | None = None
    pixel_store: float = 0
    media_store: float = 0

    @property
    def rows(self) -> int:
        """Sequences in a step."""
        return self.prompts * self.samples

    @property
    def patches(self) -> float:
        """Patches in a usual row."""
        return self.lengths.media * self.shape.vision.merge

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        if self.engine.lora_rank:
            return self.shape.lora_params(self.engine.lora_rank, self.engine.lora_vision)
        return self.shape.params - (self.shape.vision_params if self.engine.frozen_vision else 0)

    @property
    def all_params(self) -> int:
        """Number of parameters, adapters included."""
        return self.shape.params + (self.trained if self.engine.lora_rank else 0)

    @property
    def own_reference(self) -> bool:
        """Whether the reference is a separate model."""
        return self.reference and not self.engine.lora_rank

    def micro_tokens(self, budget: float) -> float:
        """Tokens that a GPU has at a time: the budget, or all it gets of a mini-batch of the longest rows."""
        groups = self.engine.gpus // self.engine.ulysses_size
        share = 1 / self.engine.mini_batches / groups
        if self.engine.shares_prefix:
            tokens = self.lengths.prompt_limit + self.samples * self.lengths.response_limit
            return min(budget, max(1, self.prompts * share) * tokens)
        return min(budget, max(1, self.rows * share) * self.lengths.longest / self.engine.ulysses_size)


@dataclass(frozen=True)
class Line:
    """A figure and where it comes from.

    Args:
        name: name of the figure.
        value: in `unit`.
        unit: `tokens`, `B`, `calls`, `s` or `h`.
        formula: how it is computed, with numbers.
        phases: for memory, the phases in which it is allocated.
    """

    name: str
    value: float
    unit: str
    formula: str
    phases: tuple[str, ...] = ()


def total(lines: Iterable[Line], phase: str) -> float:
    """Sum the bytes of a phase.

    Args:
        lines: lines of memory.
        phase: one of `PHASES`.
    """
    return sum(line.value for line in lines if phase in line.phases)


def giga(params: float) -> str:
    """Format a number of parameters.

    Args:
        params: the number.

    >>> giga(8_292_166_656)
    '8.292 G'
    """
    return f"{params / 1e9:.3f} G"
