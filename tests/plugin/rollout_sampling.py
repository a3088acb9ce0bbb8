# SPDX-License-Identifier: Apache-2.0
"""What a real vLLM engine samples from a model that wants nothing but vision placeholders, before and after verl's ban.

python rollout_sampling.py MODEL   # prints JSON; see test_safe_generation.py
"""

import json
import os
import sys


def main(model: str) -> dict[str, list[int]]:
    """Ids sampled as the engine starts, after verl's ban, and after new weights."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's worker in this process, to give it new weights
    import verl  # noqa: F401  the CPU platform
    from verl.utils import hf_processor
    from verl.workers.rollout.utils import get_vision_placeholder_token_ids
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        gpu_memory_utilization=0.05,
        kv_cache_memory_bytes=64 << 20,
        limit_mm_per_prompt={"image": 0, "video": 0},
        worker_extension_cls="verl_p2r.plugin.cpu.vllm_worker.CPUWorkerExtension",
    )
    processor = hf_processor(model)

    def sample() -> list[int]:
        given = {"prompt_token_ids": processor.tokenizer("What moves?")["input_ids"]}
        outputs = engine.generate([given] * 2, SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True))
        return [i for output in outputs for i in output.outputs[0].token_ids]

    stock = sample()
    # As verl's server does when it starts.
    banned = get_vision_placeholder_token_ids(processor)
    engine.collective_rpc(
        "monkey_patch_model", kwargs={"vocab_size": len(processor.tokenizer), "banned_token_ids": banned}
    )
    patched = sample()
    worker = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    worker.model_runner.reload_weights()  # as our worker does with the trainer's
    return {"stock": stock, "banned": patched, "after new weights": sample()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
