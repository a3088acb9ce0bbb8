# SPDX-License-Identifier: Apache-2.0
"""Without flash-attn, log-probabilities are computed token by token, and without autocast rounded to half precision."""

import torch

THEN = "verl_p2r/plugin/fsdp/log_probs.py can go, with its lines in fsdp/engine.py and hooks.yaml"


def fault() -> str | None:
    """Count what torch runs for 1,000 tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from verl.utils.torch_functional import logprobs_from_logits_v2

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    logits, labels = torch.zeros(1000, 8, dtype=torch.bfloat16), torch.zeros(1000, dtype=torch.int64)
    with Counting() as counting:
        log_probs = logprobs_from_logits_v2(logits, labels)
    if counting.calls < 1000 and abs(log_probs[0].item() + 2.0794) < 1e-4:
        return None
    return (
        f"1,000 tokens: {counting.calls:,} operations; the log-probability of one of 8 equal tokens is "
        f"{log_probs[0].item():.4f} instead of -2.0794"
    )
