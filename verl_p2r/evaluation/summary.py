# SPDX-License-Identifier: Apache-2.0
"""Turns item scores into one figure for each benchmark, with intervals, categories and what qualifies the figure.

Each way to average is a nesting of groups: the score is the mean of its groups' means, level by level.

    items         no groups: the mean over items
    types         the mean over question types, tasks or tracks
    two_means     (mean relative accuracy + accuracy) / 2
    eight_types   VSI-Bench's own: types, of which the three levels of relative direction are one
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from verl_p2r.evaluation.intervals import effective_size, wilson
from verl_p2r.evaluation.items import ItemScore, score_items
from verl_p2r.evaluation.protocol import Protocol, canonical

_DIRECTION = "object_rel_direction"
_ADAPTATION = "Adaptation"

Path = tuple[str, ...]
_PATHS: Mapping[str, Callable[[ItemScore], Path]] = {
    "items": lambda item: (),
    "types": lambda item: (item.group,),
    "two_means": lambda item: (item.metric,),
    "eight_types": lambda item: (_DIRECTION if item.group.startswith(_DIRECTION) else item.group, item.group),
}
_VSI = {"official": "eight_types", "video_r1": "two_means", "items": "items"}


def score(records: Iterable[Mapping[str, Any]], protocol: str) -> dict[str, dict[str, Any]]:
    """Score replies by a named protocol.

    Args:
        records: each with `benchmark`, `problem_type`, `question_type` or `task`, `video_id`, `options`, `solution`,
            `response` (the whole text; None without a reply, `lost` then says why) and `finish_reason`; also
            `problem_id` (two records of one id count once), `completion_tokens` and `categories` (name → value).
        protocol: `video_r1`, `official`, or the path of a YAML file.

    Returns:
        For each benchmark, figures in [0, 1]:

        | key                         | meaning                                                                       |
        |-----------------------------|-------------------------------------------------------------------------------|
        | `score`, `low`, `high`      | by the protocol's reader and average; Wilson's 95 % interval                  |
        | `n`                         | items, lost ones included                                                     |
        | `clustered`                 | `low`, `high` with one cluster for each video; `videos`: how many             |
        | `lenient`                   | `score`, `low`, `high` by training's lenient comparison                       |
        | `overall`                   | of VSI-Bench: its three published averages, `official`, `video_r1`, `items`   |
        | `categories`                | question type or task → `score`, `lenient`, `n`, `low`, `high`                |
        | `by`                        | the same for each further category                                            |
        | `format_rate`, `truncated`  | shares of items in the template, and cut off by `max_tokens`                  |
        | `lost`                      | reason → items without a reply; they score 0                                  |
        | `length`                    | `mean`, `median`, `p95` of the replies that came                              |
        | `protocol`, `average`       | how this was scored                                                           |
        | `note`                      | how the reading differs from the benchmark's own; empty if it does not        |
        | `knowledge_gain`            | VideoMMMU's Δknowledge, if its Adaptation was also asked without the lectures |

    Raises:
        ValueError: the protocol is unknown, or a record is wrong; the message names record and field.
    """
    rules = Protocol.load(protocol)
    figures = {name: summary(items, rules) for name, items in by_benchmark(score_items(records, rules)).items()}
    _add_knowledge_gain(figures)
    return figures


def by_benchmark(items: Iterable[ItemScore]) -> dict[str, list[ItemScore]]:
    """Group items by benchmark, in the order they come."""
    groups: dict[str, list[ItemScore]] = defaultdict(list)
    for item in items:
        groups[item.benchmark].append(item)
    return dict(groups)


def item_weights(items: Sequence[ItemScore], average: str) -> tuple[np.ndarray, list[Path]]:
    """Weigh items so that the weighted sum of their scores is the average.

    Args:
        items: items of one benchmark.
        average: one of `protocol.OVERALL`.

    Returns:
        Weights, shape (n,), which sum to 1; and the innermost group of each item.
    """
    paths = [_PATHS[average](item) for item in items]
    sizes, shares = Counter(paths), _shares(set(paths))
    return np.array([shares[path] / sizes[path] for path in paths], dtype=np.float64), paths


def mean_of(scores: Sequence[float], items: Sequence[ItemScore], average: str) -> float:
    """Average scores of items: the mean of group means, level by level.

    Args:
        scores: scores of the items, in [0, 1].
        items: items of one benchmark.
        average: one of `protocol.OVERALL`.
    """
    groups: dict[Path, list[float]] = defaultdict(list)
    for item, value in zip(items, scores, strict=True):
        groups[_PATHS[average](item)].append(value)
    shares = _shares(set(groups))
    return sum(shares[path] * sum(values) / len(values) for path, values in groups.items())


def _shares(paths: Collection[Path]) -> dict[Path, float]:
    """Return the share of each innermost group in the average: at every level, groups have equal weights."""
    children: dict[Path, set[Path]] = defaultdict(set)
    for path in paths:
        for depth in range(len(path)):
            children[path[:depth]].add(path[: depth + 1])
    return {path: 1 / math.prod(len(children[path[:depth]]) for depth in range(len(path))) for path in paths}


def summary(items: Sequence[ItemScore], protocol: Protocol) -> dict[str, Any]:
    """Summarise one benchmark's items; see `score` for the keys."""
    benchmark = items[0].benchmark
    average = protocol.overall_of(benchmark)
    strict = [item.strict for item in items]
    replies = [item.length for item in items if item.lost is None]
    result: dict[str, Any] = {
        **_bounded(items, strict, average),
        "n": len(items),
        "protocol": protocol.name,
        "average": average,
        "note": protocol.note_on(benchmark),
        "clustered": _clustered(items, strict, average),
        "lenient": _bounded(items, [item.lenient for item in items], average),
        "categories": _categories(items, lambda item: item.group),
        "by": {
            name: _categories([item for item in items if name in item.by], partial(_category, name))
            for name in dict.fromkeys(name for item in items for name in item.by)
        },
        "format_rate": sum(item.well_formed for item in items) / len(items),
        "truncated": sum(item.cut for item in items) / len(items),
        "lost": dict(Counter(item.lost for item in items if item.lost is not None).most_common()),
        "length": _lengths(replies),
    }
    if canonical(benchmark) == "vsi_bench":
        result["overall"] = {name: float(item_weights(items, way)[0] @ np.array(strict)) for name, way in _VSI.items()}
    return result


def knowledge_gain(before: float, after: float) -> float:
    """Measure what a lecture teaches: VideoMMMU's Δknowledge (arXiv 2501.13826).

        Δknowledge = (after − before) / (1 − before)

    Args:
        before: accuracy without the lecture, in [0, 1].
        after: accuracy with it, in [0, 1].

    Returns:
        The share of what was missing that was gained, at most 1; negative if the lecture makes answers worse; 0 if
        nothing was missing [ours].

    >>> round(knowledge_gain(0.5, 0.6), 6), round(knowledge_gain(0.5, 0.4), 6)
    (0.2, -0.2)
    """
    return (after - before) / (1 - before) if before < 1 else 0.0


def _add_knowledge_gain(figures: Mapping[str, dict[str, Any]]) -> None:
    rows = {canonical(name): row for name, row in figures.items()}
    after = rows.get("video_mmmu", {}).get("categories", {}).get(_ADAPTATION)
    before = rows.get("video_mmmu_question_only", {}).get("categories", {}).get(_ADAPTATION)
    if before and after:
        gain = knowledge_gain(before["score"], after["score"])
        rows["video_mmmu"]["knowledge_gain"] = {"score": gain, "before": before["score"], "after": after["score"]}


def _bounded(items: Sequence[ItemScore], scores: Sequence[float], average: str) -> dict[str, float]:
    """Return a score and its Wilson interval; if it is not a plain share, with the effective number of items."""
    x = np.array(scores, dtype=np.float64)
    weights, paths = item_weights(items, average)
    value = min(mean_of(scores, items, average), 1.0)
    n: float = len(items)
    if average != "items" or not np.isin(x, (0.0, 1.0)).all():
        n = effective_size(x, weights, _means(x, paths), range(len(items)))
    low, high = wilson(value, n)
    return {"score": value, "low": low, "high": high}


def _clustered(items: Sequence[ItemScore], scores: Sequence[float], average: str) -> dict[str, Any]:
    x = np.array(scores, dtype=np.float64)
    weights, paths = item_weights(items, average)
    videos = [item.video for item in items]
    n = effective_size(x, weights, _means(x, paths), videos)
    low, high = wilson(min(mean_of(scores, items, average), 1.0), n)
    return {"low": low, "high": high, "videos": len(set(videos))}


def _means(x: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
    """Return the mean score of each item's innermost group."""
    numbers: dict[Path, int] = {}
    index = np.array([numbers.setdefault(path, len(numbers)) for path in paths])
    means: np.ndarray = (np.bincount(index, weights=x) / np.bincount(index))[index]
    return means


def _categories(items: Sequence[ItemScore], of: Callable[[ItemScore], str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[ItemScore]] = defaultdict(list)
    for item in items:
        groups[of(item)].append(item)
    return {
        name: {
            **_bounded(group, [item.strict for item in group], "items"),
            "lenient": sum(item.lenient for item in group) / len(group),
            "n": len(group),
        }
        for name, group in sorted(groups.items())
        if name
    }


def _category(name: str, item: ItemScore) -> str:
    return str(item.by[name])


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {"mean": 0.0, "median": 0.0, "p95": 0.0}
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
    }
