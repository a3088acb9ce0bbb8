# SPDX-License-Identifier: Apache-2.0
"""What shared prompts and kept vision features save of a step, as arithmetic.

With the shared prefix a prompt and its media are computed once for all its responses, and logits are made of responses
only. With a frozen vision tower its features can be kept, so that one pass of a step makes them for all passes.
"""

from collections.abc import Iterator
from dataclasses import replace

from verl_p2r.planner.job import Job
from verl_p2r.sizes import GIB

FEATURES = 2 * GIB  # `trainer.p2r.vision_features_gib` by default, in bytes


def pass_tokens(job: Job) -> float:
    """Count the tokens that go through the language model in one pass over a step's usual rows."""
    return job.prompts * packed_tokens(job) if job.engine.shares_prefix else job.rows * job.lengths.row


def packed_tokens(job: Job) -> float:
    """Count the tokens of a usual prompt with all its responses."""
    return job.lengths.prompt + job.samples * job.lengths.response


def media_share(job: Job) -> float:
    """Share of a micro-batch's tokens that are placeholders of media."""
    return job.lengths.media / (packed_tokens(job) if job.engine.shares_prefix else job.lengths.row)


def logit_share(job: Job) -> float:
    """Share of a micro-batch's tokens that logits are made of."""
    return job.samples * job.lengths.response / packed_tokens(job) if job.engine.shares_prefix else 1.0


def gathered_share(job: Job) -> float:
    """Keys that attention gathers for each token of a micro-batch; 0 without the shared prefix."""
    if not job.engine.shares_prefix or job.samples == 1:
        return 0.0
    return (job.lengths.prompt + job.samples * job.lengths.row) / packed_tokens(job)


def text_operations(job: Job, rows: float) -> float:
    """Count the operations of a forward pass of the language model over usual rows.

    Args:
        job: the run.
        rows: sequences; with the shared prefix `job.samples` of them share a prompt.
    """
    shape, lengths = job.shape, job.lengths
    if not job.engine.shares_prefix:
        return shape.text_operations([lengths.row]) * rows
    prompt, response = lengths.prompt, job.samples * lengths.response
    matrices = shape.layers * shape.layer_matrices * (prompt + response) + shape.embedding_params * response
    pairs = prompt**2 + job.samples * (2 * prompt * lengths.response + lengths.response**2)
    return (2 * matrices + 2 * shape.layers * shape.queries * pairs) * rows / job.samples


def vision_operations(job: Job, rows: float) -> float:
    """Count the operations of a forward pass of the vision tower over the media of usual rows.

    The tower sees each set of media once per prompt with the shared prefix, and once per row without it.

    Args:
        job: the run.
        rows: sequences.
    """
    sets = rows / job.samples if job.engine.shares_prefix else rows
    return job.shape.vision_operations(job.patches, job.lengths.grid) * sets


def kept_features(job: Job) -> float:
    """Share of a step's media whose features the later passes find, from 0 to 1.

    The features of a rank are those of its prompts; without the shared prefix its rows may all have different prompts.
    """
    if not job.engine.frozen_vision or not job.engine.features:
        return 0.0
    return min(1.0, job.engine.features / max(1.0, features_bytes(job)))


def features_bytes(job: Job) -> float:
    """Bytes of all features of a step's media on one GPU's process."""
    ranks = job.engine.gpus // job.engine.ulysses_size
    sets = job.prompts / ranks if job.engine.shares_prefix else min(job.prompts, job.rows / ranks)
    values = job.lengths.media * job.shape.vision.out * (1 + job.shape.vision.deepstack)
    return sets * values * job.engine.compute_bytes


def variants(job: Job) -> Iterator[tuple[str, Job]]:
    """Plan an RL job as verl runs it, and with each saving, whatever it has switched on; nothing for SFT."""
    if job.rollout is None:
        return
    kept = {"": 0.0} | ({", features once a step": job.engine.features or FEATURES} if job.engine.frozen_vision else {})
    for shares, name in ((False, "whole rows"), (True, "shared prefix")):
        if shares and (job.engine.ulysses_size > 1 or job.shape.family.hybrid):
            continue  # refused with Ulysses and for hybrid models
        for more, features in kept.items():
            yield name + more, replace(job, engine=replace(job.engine, shares_prefix=shares, features=features))
