# SPDX-License-Identifier: Apache-2.0
"""The environment of vLLM's CPU build, for the processes that verl starts and for scripts that only use vLLM."""

ROLLOUT_ENV = {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer shares the cores
    "TORCHDYNAMO_DISABLE": "1",  # vLLM's sampler helpers would otherwise compile through g++ at first use
    "VLLM_LOGGING_LEVEL": "WARNING",
}
