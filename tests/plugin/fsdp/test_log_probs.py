# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities in blocks against torch's log-softmax in float64, and against verl's loop over tokens."""

import subprocess
import sys

import pytest
import torch
from verl.utils import torch_functional

from verl_p2r.plugin.fsdp import log_probs


def exact(logits, labels, weights):
    """Log-probabilities and the gradient of their weighted sum, in float64."""
    leaf = logits.detach().double().requires_grad_()
    made = leaf.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return made.detach(), torch.autograd.grad((made * weights.double()).sum(), leaf)[0]


def ours(logits, labels, weights):
    leaf = logits.detach().clone().requires_grad_()
    made = torch_functional.logprobs_from_logits(leaf, labels)
    return made.detach(), torch.autograd.grad((made * weights).sum(), leaf)[0]


@pytest.fixture(params=[1, 37, 2**20], ids=["a token a block", "three tokens a block", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(log_probs, "CPU_VALUES", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("dtype", "tolerance", "of_gradient"),
    [
        (torch.float64, 1e-13, 1e-13),
        (torch.float32, 5e-6, 1e-6),
        (torch.bfloat16, 5e-6, 4e-3),
        (torch.float16, 5e-6, 1e-3),
    ],
)
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1,), (0,)])
def test_log_probs_and_gradients_are_those_of_log_softmax(dtype, tolerance, of_gradient, shape):
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(*shape, 11, generator=random) * 6).to(dtype)
    logits[..., 3] = float("-inf")  # a token that is never sampled
    labels = torch.randint(4, 11, shape, generator=random)
    weights = torch.randn(shape, generator=random)
    before = logits.clone()
    expected, found = exact(logits, labels, weights), ours(logits, labels, weights)
    assert found[0].shape == shape
    assert found[0].dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert found[1].dtype == dtype
    torch.testing.assert_close(found[0].double(), expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found[1].double(), expected[1], atol=of_gradient, rtol=of_gradient)
    assert torch.equal(logits, before)


def test_logits_far_from_zero_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
    found, gradient = ours(logits, torch.tensor([0, 2]), torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([0.0, -1.0986123]), atol=1e-3, rtol=0)  # float32 of 1e4
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 0.0], [-1 / 3, -1 / 3, 2 / 3]]), atol=1e-3, rtol=0)


def test_results_are_those_of_verls_loop():
    random = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 300, generator=random) * 3, torch.randint(300, (50,), generator=random)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    stock, mine = log_probs.verls_log_probs(leaves[0], labels), log_probs.logprobs_from_logits_v2(leaves[1], labels)
    torch.testing.assert_close(mine, stock, atol=2e-6, rtol=0)
    gradients = [
        torch.autograd.grad(made.square().sum(), leaf)[0] for made, leaf in zip((stock, mine), leaves, strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], atol=5e-6, rtol=1e-5)


def test_half_precision_is_not_rounded_as_in_verls_loop():
    """Each of 152,064 equal logits has the log-probability -11.932; the nearest bfloat16 is -11.9375."""
    logits, labels = torch.zeros(1, 152064, dtype=torch.bfloat16), torch.tensor([5])
    assert log_probs.logprobs_from_logits_v2(logits, labels).item() == pytest.approx(-11.93206, abs=1e-5)
    assert log_probs.verls_log_probs(logits, labels).item() == -11.9375


def test_verls_engine_uses_it():
    script = """
import verl
from verl.workers.engine.fsdp import transformer_impl
print("uses", transformer_impl.logprobs_from_logits.__globals__["logprobs_from_logits_v2"].__module__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "uses verl_p2r.plugin.fsdp.log_probs" in done.stdout


def test_a_second_derivative_is_refused():
    leaf = torch.zeros(2, 3, requires_grad=True)
    made = log_probs.logprobs_from_logits_v2(leaf, torch.tensor([0, 1])).sum()
    [gradient] = torch.autograd.grad(made, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        torch.autograd.grad(gradient.sum(), leaf)
