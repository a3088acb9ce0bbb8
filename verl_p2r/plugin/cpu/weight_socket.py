# SPDX-License-Identifier: Apache-2.0
"""The socket that takes weights from the trainer to its vLLM server: one for each run.

verl 0.9.1 names it by Ray's job id, which is 01000000 in every run that starts a Ray cluster for itself. Two such runs
on one machine share the socket, and hang or take each other's weights. The port of the cluster's control store tells
them apart. Remove this when verl's name does.
"""

import os

import ray
from verl.workers.rollout.vllm_rollout import ServerAdapter


def run_id() -> str:
    """Return Ray's job id with the port of its cluster, which no other cluster on this machine has."""
    context = ray.get_runtime_context()
    return f"{context.get_job_id()}-{context.gcs_address.rpartition(':')[2]}"


def receive_from_this_run() -> None:
    """Give the vLLM worker, which inherits this environment, the name that `CPUServerAdapter` sends to."""
    os.environ["VERL_RAY_JOB_ID"] = run_id()


class CPUServerAdapter(ServerAdapter):
    """verl's sender of weights, with a socket for this run alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        job = ray.get_runtime_context().get_job_id()
        self.zmq_handle = self.zmq_handle.replace(f"-{job}-", f"-{run_id()}-")
