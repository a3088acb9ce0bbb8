# SPDX-License-Identifier: Apache-2.0
"""Time the data tools: import, verification, and how busy generation and judging keep a server.

    python benchmarks/data_tools.py [--quick] [--record]

The last line is a JSON object:
    import_rows_per_s   records imported to parquet per second, including the start of the process, from a release of
                        the published size: 263,055 records in the RL file's format (target 4,384: all in 60 s)
    import_peak_gb      largest resident memory of that process, in GB (target 1)
    verify_rows_per_s   records read, verified and written per second, including the start of the process (target 5,000)
    verify_ratio        this speed divided by that of a straightforward loop: read a JSON line, match a regular
                        expression, make a scorer and call it, as Video-R1's reward functions do. Both use one core.
                        The start and the imports of the loop are not timed; ours are (target 1)
    generate_share      share of the capacity of a server with fixed latency that is in use, by the server's own log,
    judge_share         from when all allowed calls are in flight for the first time until the last call (target 0.95)

Generation reads real mp4 files, 16 frames each. With --quick there are fewer records and calls, fewer in flight, and
shorter latencies.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recording

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent / "support")]

RECORDS, PARTS = 263_055, 3
TARGETS = {
    "verify_rows_per_s": (5000, 1),
    "verify_ratio": (1, 1),
    "generate_share": (0.95, 1),
    "judge_share": (0.95, 1),
    "import_rows_per_s": (RECORDS / 60, 1),
    "import_peak_gb": (1.0, -1),
}
ANSWERS = {
    "multiple choice": "B",
    "numerical": "42",
    "OCR": "No parking",
    "free-form": "She opens the window.",
    "regression": "3.5",
}
SENTENCE = "the red ball rolls left past a wooden box while a child in yellow watches it from an open door"
WORDS = SENTENCE.split()
CLIPS = 4  # mp4 files that generation reads in turn; one with --quick
SERVED = (("generate", 16, 4.0), ("judge", 64, 2.0))  # step, calls in flight, latency in seconds


def record(number: int, draw: random.Random) -> dict[str, str]:
    """Make a record like those of the release's RL file: every value a text, segments as long as in the paper."""
    kind = draw.choices(list(ANSWERS), weights=(64, 13, 6, 15, 2))[0]  # percentages of Video-R1's questions
    answer = ANSWERS[kind]
    options = [f"{letter}. {' '.join(draw.choices(WORDS, k=6))}" for letter in "ABCD"]
    observation, thinking = (" ".join(draw.choices(WORDS, k=words)) for words in (150, 280))
    return {
        "problem": f"What happens after {' '.join(draw.choices(WORDS, k=15))}?",
        "options": str(options if kind == "multiple choice" else []),
        "solution": f"<answer>{answer}</answer>",
        "answer": answer,
        "path": f"./LLaVA-Video-178K/academic_source/{number // 2:06d}x.mp4",
        "data_source": "",
        "data_type": "video" if draw.random() < 0.44 else "image",
        "problem_type": kind,
        "observation": observation,
        "process": f"<think>{thinking}</think>",
        "output": f"<observation>{observation}</observation>\n<think>{thinking}</think>\n<answer>{answer}</answer>",
        "problem_id": str(number),
        "reward": "1.0",
        "select": "True",
        "clean_version": "",
    }


def write_release(folder: Path, count: int) -> None:
    draw = random.Random(0)
    for part in range(PARTS):
        numbers = range(part * count // PARTS, (part + 1) * count // PARTS)
        path = folder / f"VideoP2R-263k_rl.part{part + 1}of{PARTS}.json.gz"
        with gzip.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
            for i, number in enumerate(numbers):
                file.write((",\n" if i else "[\n") + json.dumps(record(number, draw), indent=2))
            file.write("\n]")


def data_tools(*arguments: str) -> float:
    """Run a command of `verl-p2r-data` in a new process, and return its wall time in seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "data_tools", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def measure_import(folder: Path, count: int) -> dict[str, float]:
    print(f"writing {count:,} records …", flush=True)
    write_release(folder, count)
    size = sum(path.stat().st_size for path in folder.iterdir())
    seconds = data_tools("import-release", str(folder), "--out", str(folder / "out"))
    manifest = json.loads((folder / "out" / "rl" / "manifest.json").read_text(encoding="utf-8"))
    if manifest["written"] != count:
        raise RuntimeError(f"{manifest['written']} of {count} records were imported: {manifest['rejected']}")
    unit = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    print(f"import: {count:,} records ({size / 1e6:.0f} MB of gzip) in {seconds:.1f} s, {peak:.2f} GB at most")
    return {"import_rows_per_s": count / seconds, "import_peak_gb": peak}


def measure_verify(folder: Path, count: int) -> dict[str, float]:
    draw, source = random.Random(1), folder / "generated.jsonl"
    free_form = 0
    with source.open("w", encoding="utf-8") as file:
        for number in range(count):
            own = record(number, draw)
            free_form += own["problem_type"] == "free-form"
            if own["problem_type"] in ("free-form", "OCR"):  # answers of a sentence, similar to the solution
                solution = draw.choices(WORDS, k=20)
                answer = [word if draw.random() < 0.8 else draw.choice(WORDS) for word in solution]
                own["solution"] = own["answer"] = " ".join(solution)
                own["output"] = own["output"].partition("<answer>")[0] + f"<answer>{' '.join(answer)}</answer>"
            file.write(json.dumps(own) + "\n")
    seconds = data_tools("verify", str(source), "--out", str(folder / "verified"))
    kept = json.loads((folder / "verified" / "manifest.json").read_text())["written"]
    import rouge_score.rouge_scorer  # noqa: F401  loaded before the clock runs

    start = time.perf_counter()
    plain_kept = plain_verify(source, folder / "plain.jsonl", count // 10)
    plain = (time.perf_counter() - start) * count / (count // 10)
    print(
        f"verify: {count:,} records, {free_form:,} of them free-form, in {seconds:.1f} s, {kept:,} kept; "
        f"straightforward loop {plain:.1f} s, extrapolated from a tenth ({plain_kept:,} kept)"
    )
    return {"verify_rows_per_s": count / seconds, "verify_ratio": plain / seconds}


def plain_verify(source: Path, out: Path, count: int) -> int:
    """Verify records in a straightforward loop with Video-R1's reward functions."""
    from rouge_score import rouge_scorer

    pattern = re.compile(r"<observation>.*?</observation>\s*<think>.*?</think>\s*<answer>(.*?)</answer>", re.DOTALL)

    def wer(reference: str, hypothesis: str) -> float:
        true, made = reference.split(), hypothesis.split()
        table = [[0] * (len(made) + 1) for _ in range(len(true) + 1)]
        for i in range(len(true) + 1):
            table[i][0] = i
        for j in range(len(made) + 1):
            table[0][j] = j
        for i in range(1, len(true) + 1):
            for j in range(1, len(made) + 1):
                same = true[i - 1] == made[j - 1]
                near = min(table[i - 1][j], table[i][j - 1], table[i - 1][j - 1])
                table[i][j] = table[i - 1][j - 1] if same else 1 + near
        return table[-1][-1] / max(len(true), 1)

    def score(kind: str, answer: str, solution: str) -> float:
        if kind == "multiple choice":
            return float(answer.strip() == solution.strip())
        if kind == "numerical":
            return float(round(float(answer), 2) == round(float(solution), 2))
        if kind == "regression":
            return max(0.0, 1 - abs(float(answer) - float(solution)) / (abs(float(solution)) + 1e-9))
        if kind == "OCR":
            return max(0.0, 1 - wer(solution, answer))
        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        return sum(value.fmeasure for value in scorer.score(solution, answer).values()) / 3

    kept = 0
    with source.open(encoding="utf-8") as lines, out.open("w", encoding="utf-8") as file:
        for line, _ in zip(lines, range(count), strict=False):
            own = json.loads(line)
            match = pattern.fullmatch(own["output"])
            solution = re.sub(r"</?answer>", "", own["solution"])
            if match and score(own["problem_type"], match[1], solution) >= 0.6:
                file.write(json.dumps(own) + "\n")
                kept += 1
    return kept


def measure_servers(folder: Path, quick: bool) -> dict[str, float]:
    from busy import busy_share
    from clips import write_clip
    from judge_server import JudgeServer

    (folder / "media").mkdir()
    rounds, clips = (2, 1) if quick else (10, CLIPS)
    for clip in range(clips):
        write_clip(folder / "media" / f"{clip}.mp4", clip, width=480, height=270, fps=24, seconds=8)
    figures = {}
    server = JudgeServer(folder / "journal.jsonl")
    try:
        for step, allowed, usual in SERVED:
            in_flight, latency = (allowed // 4, usual / 2) if quick else (allowed, usual)
            server.reset()
            source, draw = folder / f"{step}.jsonl", random.Random(2)
            with source.open("w", encoding="utf-8") as file:
                for number in range(in_flight * (rounds + 1)):
                    own = record(number, draw) | {"data_type": "video", "path": f"{number % clips}.mp4"}
                    file.write(json.dumps(own) + "\n")
            server.control(latency=latency, yes_when=".*")
            where = ["--media-root", str(folder / "media")] if step == "generate" else []
            config = folder / "config.yaml"
            config.write_text("judge: {health_check: false}\n")
            common = ["--model", "judge", "--base-url", server.base_url, "--concurrency", str(in_flight)]
            seconds = data_tools(
                step, str(source), "--out", str(folder / step), "--config", str(config), *common, *where
            )
            calls = server.calls()
            figures[f"{step}_share"] = share = busy_share([(call.start, call.end) for call in calls], in_flight)
            print(
                f"{step}: {len(calls)} calls of {latency:g} s, {in_flight} in flight, in {seconds:.1f} s: {share:.3f}"
            )
    finally:
        server.kill()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and calls; less than 50 seconds")
    recording.add_option(parser)
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as name:
        (release := Path(name) / "release").mkdir()
        figures = measure_import(release, RECORDS // (120 if quick else 1))
        figures |= measure_verify(Path(name), 2_000 if quick else 200_000)
        figures |= measure_servers(Path(name), quick)
    for figure, (target, sign) in TARGETS.items():
        met = "met" if sign * (figures[figure] - target) >= 0 else "MISSED"
        print(f"{figure:18} {figures[figure]:10,.3f}   target {target:,.2f}   {met}")
    recording.finish("data_tools", {figure: round(figures[figure], 4) for figure in TARGETS}, arguments)


if __name__ == "__main__":
    main()
