# SPDX-License-Identifier: Apache-2.0
"""The environment of vLLM's CPU build, for the processes verl starts and for scripts that use vLLM alone."""

# What vLLM's CPU build needs in the processes verl starts for it.
ROLLOUT_ENV = {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer shares the cores
    "TORCHDYNAMO_DISABLE": "1",  # vLLM's sampler helpers would otherwise compile through g++ at first use
    "VLLM_LOGGING_LEVEL": "WARNING",
}
