# SPDX-License-Identifier: Apache-2.0
"""`credit.py` on the quickstart's own model with random weights: sampling, gradients, and a tiny run with a resume."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from own_forwards import own_forwards
from paths import QUICKSTART
from quickstart_data import NUMBERS, load, make_data, rows
from quickstart_runs import invoke

sys.path.insert(0, str(QUICKSTART))

import credit
import credit_gradients

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _own_forwards():
    with own_forwards():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with `model` and `data`."""
    out = tmp_path_factory.mktemp("credit")
    make_model = load("make_model")
    make_model.make(out / "model", 0)
    make_data.make(make_data.parse_args([str(out / "data"), *NUMBERS]))
    return out


@pytest.fixture(scope="module")
def policy(folder) -> credit_gradients.Policy:
    return credit_gradients.Policy(folder / "model", 512)


def test_samples_are_counted_and_their_probabilities_are_those_of_the_whole_sequence(folder, policy, monkeypatch):
    monkeypatch.setattr(credit_gradients, "MAX_TOKENS", 1)
    prompt = policy.encode(rows(folder / "data", "rl_train")[0])
    drawn = policy.sample(prompt, 20_000, np.random.default_rng(0))
    assert sum(drawn.values()) == 20_000
    # One token: shares of the samples against the model's probabilities.
    for response, count in sorted(drawn.items(), key=lambda item: -item[1])[:3]:
        chance = float(policy.log_probabilities(prompt, response).exp())
        assert count / 20_000 == pytest.approx(chance, abs=5 * (chance / 20_000) ** 0.5)


def test_cached_sampling_computes_the_same_model_as_the_whole_sequence(folder, policy, monkeypatch):
    # Greedy by tree and by whole sequences: the likeliest token is drawn by a generator that only draws it.
    class Greedy:
        def multinomial(self, count, shares):
            drawn = np.zeros(len(shares), int)
            drawn[shares.argmax()] = count
            return drawn

    monkeypatch.setattr(credit_gradients, "MAX_TOKENS", 12)
    prompt = policy.encode(rows(folder / "data", "rl_train")[1])
    ((response, count),) = policy.sample(prompt, 5, Greedy()).items()
    assert count == 5
    ids, positions = prompt.continued(response)
    with torch.no_grad():
        logits = policy.model(input_ids=ids, position_ids=positions, use_cache=False, **prompt.pixels).logits[0]
    logits[:, [policy.processor.video_token_id, policy.processor.image_token_id]] = -torch.inf
    assert logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist() == list(response)


def test_gradients_of_both_segments_add_up_to_that_of_the_models_own_loss(folder, policy):
    prompt = policy.encode(rows(folder / "data", "rl_train")[0])
    response = tuple(policy.processor.tokenizer.encode("<observation>a red square</observation><think>so"))
    logs = policy.log_probabilities(prompt, response)
    parts = policy.gradient(logs[:3].sum(), again=True) + policy.gradient(logs[3:].sum())
    ids, positions = prompt.continued(response)
    labels = ids.clone()
    labels[:, : len(prompt.ids)] = -100
    loss = policy.model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False, **prompt.pixels).loss
    expected = policy.gradient(-len(response) * loss)
    assert float((parts - expected).norm() / expected.norm()) < 1e-4


def test_rewards_and_their_opposites(folder, policy):
    from verl_p2r.data.rows import Row

    columns = rows(folder / "data", "rl_train")[0]
    record = json.loads((folder / "data/records/rl_train.jsonl").read_text().splitlines()[0])
    seen = " ".join(fact["state"] for fact in record["facts"])
    answer = record["solution"].removeprefix("<answer>").removesuffix("</answer>")
    text = f"<observation>{seen}</observation><think>so it is</think><answer>{answer}</answer>"
    response = policy.processor.tokenizer.encode(text)
    found = credit_gradients.rewards_of(response, Row.from_columns(columns), policy.processor.tokenizer)
    # Accuracy 1 + format 1 + length 0.2, and with the opposite verdict the format alone.
    assert [list(part) for part in found] == [pytest.approx([2.2, 1.0]), pytest.approx([2.2, 1.0]), [1.0, 1.0]]
    without = policy.processor.tokenizer.encode("<think>so it is</think>")
    found = credit_gradients.rewards_of(without, Row.from_columns(columns), policy.processor.tokenizer)
    assert [list(part) for part in found] == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_the_rewards_are_those_of_rl_sh():
    script = (QUICKSTART / "rl.sh").read_text()
    for process in ("perception", "reasoning"):
        band = getattr(credit_gradients.SETTINGS, process).length
        for end in ("minimum", "maximum"):
            assert f"algorithm.p2r.{process}.length.{end}={getattr(band, end)} " in script
    assert f"data.max_response_length={credit_gradients.MAX_TOKENS} " in script
    assert f"data.train_batch_size={credit.BATCH} " in script
    assert f"rollout.n={credit.GROUP} " in script


@pytest.fixture
def few_files():
    """Let this process and those that it starts open 60 files more than are open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 60, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_tiny_run_resumes_and_gives_the_same_result(folder, tmp_path, few_files):
    weights, data = folder / "model", folder / "data/rl_train.parquet"
    arguments = ["--checkpoint", f"random={weights}", "--data", data, "--out", tmp_path, "--noise", "0.5,0"]
    arguments += ["--prompts", "4", "--samples", "16", "--dims", "64", "--workers", "1"]
    first = invoke(credit.main, *arguments)
    assert first.exit_code == 0, first.output
    result = (tmp_path / "credit.json").read_text()
    entry = json.loads(result)["checkpoints"]["random"]
    assert entry["prompts"] == 4
    assert set(entry["levels"][0]["rules"]) == set(credit.RULES)
    assert len(result) < 10_000
    files = sorted((tmp_path / "gradients/random").glob("*.pt"))
    assert len(files) == 4
    kept = {path: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()  # as if the run had been killed before its last prompt
    second = invoke(credit.main, *arguments)
    assert second.exit_code == 0, second.output
    assert "3 of 4 prompts were collected earlier" in second.output
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == kept
    assert (tmp_path / "credit.json").read_text() == result
    other = invoke(credit.main, *arguments, "--seed", "1")
    assert "starting again" in other.output
