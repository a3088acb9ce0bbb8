# SPDX-License-Identifier: Apache-2.0
"""Whether one run is better than another: a paired bootstrap over videos."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from verl_p2r.evaluation.items import ItemScore, score_items
from verl_p2r.evaluation.protocol import Protocol
from verl_p2r.evaluation.summary import by_benchmark, item_weights, mean_of

RESAMPLES = 10_000
_BATCH = 500  # resamples in memory at a time


def compare(
    first: Iterable[Mapping[str, Any]],
    second: Iterable[Mapping[str, Any]],
    protocol: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare two runs on the items that both have, by resampling videos with replacement.

    Args:
        first: records of a run for `score`, with `problem_id`.
        second: records of another run.
        protocol: see `score`.
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        For each benchmark: `first` and `second` (their scores on the shared items), `difference` (second − first),
        `low`, `high` (95 % percentile interval of the difference), `p` (two-sided: twice the smaller share of
        resamples on one side of 0), `n`, `videos`, `only_first`, `only_second` (items that the other lacks), `wins`
        and `losses` (items on which the second scores more, and less), and `protocol`.

    Raises:
        ValueError: see `score`; or a record has no `problem_id`, or the runs share no item.
    """
    rules = Protocol.load(protocol)
    sides = [by_benchmark(score_items(records, rules)) for records in (first, second)]
    results = {}
    for benchmark in (name for name in sides[0] if name in sides[1]):
        one, two = ({_key(item): item for item in side[benchmark]} for side in sides)
        shared = [key for key in one if key in two]
        if shared:
            pairs = [one[key] for key in shared], [two[key] for key in shared]
            results[benchmark] = {
                **_compared(*pairs, rules.overall_of(benchmark), resamples, seed),
                "only_first": len(one) - len(shared),
                "only_second": len(two) - len(shared),
                "protocol": rules.name,
            }
    if not results:
        raise ValueError("the two runs have no item in common: compare runs of the same prepared benchmarks")
    return results


def _key(item: ItemScore) -> str:
    if item.key is None:
        raise ValueError(f"an item of {item.benchmark} has no problem_id: items are paired by it")
    return item.key


def _compared(
    one: Sequence[ItemScore], two: Sequence[ItemScore], average: str, resamples: int, seed: int
) -> dict[str, Any]:
    weights, paths = item_weights(one, average)
    x, y = (np.array([item.strict for item in items], dtype=np.float64) for items in (one, two))
    videos: dict[str, int] = {}
    groups: dict[tuple[str, ...], int] = {}
    video = np.array([videos.setdefault(item.video, len(videos)) for item in one])
    group = np.array([groups.setdefault(path, len(groups)) for path in paths])
    share = np.bincount(group, weights=weights)  # share of each group in the average
    sums = np.zeros((len(videos), len(groups)))
    counts = np.zeros_like(sums)
    np.add.at(sums, (video, group), y - x)
    np.add.at(counts, (video, group), 1.0)
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        times = random.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=size).astype(np.float64)
        present = times @ counts
        means = np.divide(times @ sums, present, out=np.zeros_like(present), where=present > 0)
        drawn.append(means @ share)
    differences = np.concatenate(drawn)
    low, high = np.percentile(differences, (2.5, 97.5))
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return {
        "first": mean_of(x.tolist(), one, average),
        "second": mean_of(y.tolist(), one, average),
        "difference": mean_of((y - x).tolist(), one, average),
        "low": float(low),
        "high": float(high),
        "p": float(min(2 * tail, 1.0)),
        "n": len(one),
        "videos": len(videos),
        "wins": int((y > x).sum()),
        "losses": int((y < x).sum()),
    }
