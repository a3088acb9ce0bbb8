# SPDX-License-Identifier: Apache-2.0
"""How fast replies are scored and benchmarks prepared, and whether frame preparation keeps a server busy.

    python benchmarks/evaluation.py [--quick] [--peer PYTHON] [--profile]

`--peer` names the Python of an environment with lmms-eval (its wheel and its imports), which cannot be installed
together with this project. Its VSI-Bench scorer is then timed on the same replies; without it `peer_score_ratio` is
null.
"""

import argparse
import asyncio
import contextlib
import cProfile
import json
import multiprocessing
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = str(Path(__file__).parent)
sys.path[:] = [path for path in sys.path if path != HERE]  # benchmarks/data_tools.py would hide the package
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "data_tools")]

import benchmark_files  # noqa: E402
import numpy as np  # noqa: E402

from data_tools.evaluate.adapters import ADAPTERS  # noqa: E402
from data_tools.evaluate.adapters.vsi_bench import NUMERIC  # noqa: E402
from data_tools.evaluate.prepare import prepare  # noqa: E402
from data_tools.evaluate.run import DEFAULTS, evaluate  # noqa: E402
from data_tools.records.files import files_of  # noqa: E402
from verl_p2r.evaluation import BENCHMARKS, score  # noqa: E402

sys.path += [HERE, f"{HERE}/support"]
import recording  # noqa: E402
from busy import busy_share  # noqa: E402
from clips import Clips  # noqa: E402

LATENCY = 2.0  # seconds that the server takes for a reply
SLOTS = 16  # calls in flight
ITEMS_PER_VIDEO = 3  # as in Video-MME and VideoMMMU
CONTENTS = 4  # the videos that differ; evaluation takes 32 frames of each
TARGETS = {
    "score_items_per_s": 21_405 / 30,
    "run_share": 0.95,
    "prepare_items_per_s": 1000.0,
    "peer_score_ratio": None,
}


def made_replies(share: float) -> list[dict[str, Any]]:
    """Replies of the paper's length to as many items as the seven benchmarks have, in their proportions."""
    draw = np.random.default_rng(0)
    observation = "Based on the question, I need to notice the ball. " + "A red ball rolls over the green grass. " * 30
    think = "Based on the observations, the ball is red. " + "Wait, let me check whether it is (A) or (B). " * 40
    options = [f"{letter}. the {name} ball near the window" for letter, name in zip("ABCD", "wxyz", strict=True)]
    records = []
    for benchmark in BENCHMARKS:
        for kind, count in ADAPTERS[benchmark].counts.items():
            for number in range(max(round(count * share), 1)):
                numeric = kind in NUMERIC
                said = str(draw.integers(1, 9)) if numeric else draw.choice(["A", "B", "(C)", "D. the z ball", "none"])
                records.append(
                    {
                        "benchmark": benchmark,
                        "problem_id": f"{kind} {number}",
                        "problem_type": "regression" if numeric else "multiple choice",
                        "question_type": kind or "kind",
                        "video_id": f"{kind} {number // 3}",
                        "options": [] if numeric else options,
                        "solution": "4" if numeric else "B",
                        "response": f"<observation>{observation}</observation>\n<think>{think}</think>\n"
                        f"<answer>{said}</answer>",
                        "finish_reason": "stop",
                    }
                )
    return records


def score_rate(records: list[dict[str, Any]], repeats: int) -> float:
    """Items scored in a second, with intervals, categories and both readings: the best of some repeats."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        score(records, "video_r1")
        times.append(time.perf_counter() - start)
    print(f"scoring: {len(records):,} items in {min(times):.2f} s")
    return len(records) / min(times)


def prepare_rate(folder: Path, share: float) -> float:
    """Items prepared in a second, over all seven benchmarks, annotations only."""
    made = 0
    for name in BENCHMARKS:
        counts = {kind: max(round(count * share), 2) for kind, count in ADAPTERS[name].counts.items()}
        benchmark_files.MAKERS[name](folder / name, counts)
    start = time.perf_counter()
    for name in BENCHMARKS:
        made += prepare(name, folder / name, folder / "prepared" / name, partial=True).items
    seconds = time.perf_counter() - start
    print(f"preparing: {made:,} items in {seconds:.2f} s")
    return made / seconds


def serve(port: Any, journal: str) -> None:
    """Serve replies that take `LATENCY` each, and note when each call began and ended."""
    from aiohttp import web

    message = {"role": "assistant", "content": "<answer>A</answer>"}
    said = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        begun = time.monotonic()
        await asyncio.sleep(LATENCY)
        with open(journal, "a", encoding="utf-8") as file:
            file.write(f"{begun} {time.monotonic()}\n")
        return web.json_response(said)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def main() -> None:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@contextlib.contextmanager
def server(journal: Path) -> Iterator[str]:
    """Run the server in a separate process and yield its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, str(journal)), daemon=True)
    process.start()
    theirs.close()  # so that a server that dies ends the wait for its port
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def run_share(folder: Path, rounds: int) -> float:
    """The share of a server's capacity that `run` uses: calls in flight on average over those that could be."""
    videos = -(-SLOTS * rounds // ITEMS_PER_VIDEO)
    counts = {"short": videos * ITEMS_PER_VIDEO}
    paths = benchmark_files.video_mme(folder / "video_mme", counts)
    clips = Clips(folder, CONTENTS, width=640, height=360, fps=10, seconds=18)
    for path in paths:
        clips.give(folder / "video_mme" / path)
    prepare("video_mme", folder / "video_mme", folder / "prepared", partial=True)
    journal = folder / "journal"
    with server(journal) as url:
        settings = replace(DEFAULTS, model="m", base_urls=(url,), concurrency=SLOTS)
        begun, cpu = time.perf_counter(), time.process_time()
        report = evaluate(files_of([folder / "prepared"]), folder / "run", settings, folder / "video_mme")
        seconds, busy = time.perf_counter() - begun, time.process_time() - cpu
    if report.written != counts["short"]:
        raise RuntimeError(f"{report.read - report.written} items got no reply: {report.rejected}")
    calls = [(float(begin), float(end)) for begin, end in map(str.split, journal.read_text().splitlines())]
    share = busy_share(calls, SLOTS)
    print(
        f"run: {len(calls)} calls on {videos} videos of 32 frames in {seconds:.1f} s, {SLOTS} in flight at "
        f"{LATENCY:g} s: {share:.3f} of capacity, client {busy / seconds:.0%} of a core"
    )
    return share


# The scorer's file is loaded by itself: its package imports transformers and torch, which scoring does not need.
PEER = """
import importlib.util, json, pathlib, sys, time
package = pathlib.Path(importlib.util.find_spec("lmms_eval").origin).parent
spec = importlib.util.spec_from_file_location("scorer", package / "tasks" / "vsibench" / "utils.py")
scorer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scorer)
docs = [json.loads(line) for line in sys.stdin]
start = time.perf_counter()
done = [scorer.vsibench_process_results(doc, [doc["response"]])["vsibench_overall"] for doc in docs]
scorer.vsibench_aggregate_overall(done)
print(json.dumps(len(docs) / (time.perf_counter() - start)))
"""


def peer_rate(python: str, records: list[dict[str, Any]]) -> float:
    """Items that lmms-eval's VSI-Bench scorer takes in a second, in its own environment."""
    names = {"response": "response", "question_type": "question_type", "solution": "ground_truth", "options": "options"}
    docs = "\n".join(json.dumps({theirs: record[ours] for ours, theirs in names.items()}) for record in records)
    done = subprocess.run(
        [python, "-c", PEER],
        input=docs,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    if done.returncode:
        raise RuntimeError(f"lmms-eval's scorer failed in {python}:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer items; within 50 seconds")
    parser.add_argument("--peer", metavar="PYTHON", help="the Python of an environment with lmms-eval")
    parser.add_argument("--profile", action="store_true", help="show where scoring spends its time")
    recording.add_option(parser)
    arguments = parser.parse_args()
    share, rounds, repeats = (0.05, 2, 1) if arguments.quick else (1.0, 12, 3)
    figures: dict[str, float | None] = {}
    records = made_replies(share)
    score(records[:200], "video_r1")
    figures["score_items_per_s"] = score_rate(records, repeats)
    if arguments.profile:
        profiler = cProfile.Profile()
        profiler.runcall(score, records, "video_r1")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
    with tempfile.TemporaryDirectory() as folder:
        figures["prepare_items_per_s"] = prepare_rate(Path(folder) / "prepare", share)
        figures["run_share"] = run_share(Path(folder) / "run", rounds)
    figures["peer_score_ratio"] = None
    if arguments.peer:
        vsi = [record for record in records if record["benchmark"] == "vsi_bench"]
        theirs, ours = peer_rate(arguments.peer, vsi), score_rate(vsi, repeats)
        figures["peer_score_ratio"] = ours / theirs
        print(f"VSI-Bench: ours {ours:,.0f} items/s, lmms-eval {theirs:,.0f} items/s")
    for name, target in TARGETS.items():
        value = figures[name]
        if value is not None and target is not None:
            print(f"{name:22}{value:10.3f}   target at least {target:g}: {'met' if value >= target else 'MISSED'}")
    rounded = {name: None if figures[name] is None else round(figures[name], 4) for name in TARGETS}  # type: ignore
    recording.finish("evaluation", rounded, arguments)


if __name__ == "__main__":
    main()
