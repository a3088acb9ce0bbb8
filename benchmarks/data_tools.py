# SPDX-License-Identifier: Apache-2.0
"""Time the import of a release of the published size, 263,055 records in the RL file's format, to parquet.

    python benchmarks/data_tools.py [--quick]

The last line is a JSON object: `import_rows_per_s` are the records imported per second, in a process of its own, its
start included (target 4,384: all of them in 60 s); `import_peak_gb` is that process's largest resident memory, in GB
(target 1). With --quick a tenth of the records is imported.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORDS, PARTS = 263_055, 3
TARGETS = {"import_rows_per_s": (RECORDS / 60, 1), "import_peak_gb": (1.0, -1)}
ANSWERS = {
    "multiple choice": "B",
    "numerical": "42",
    "OCR": "No parking",
    "free-form": "She opens the window.",
    "regression": "3.5",
}
SENTENCE = "the red ball rolls left past a wooden box while a child in yellow watches it from an open door"
WORDS = SENTENCE.split()


def record(number: int, draw: random.Random) -> dict[str, str]:
    """A record as the release's RL file has it: every value a text; observation and thinking of the paper's length."""
    kind = draw.choices(list(ANSWERS), weights=(64, 13, 6, 15, 2))[0]  # in per cent of Video-R1's questions
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="import a tenth of the records")
    count = RECORDS // 10 if parser.parse_args().quick else RECORDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"writing {count:,} records …", flush=True)
        write_release(folder, count)
        size = sum(path.stat().st_size for path in folder.iterdir())
        command = [sys.executable, "-m", "data_tools", "import-release", name, "--out", str(folder / "out")]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        manifest = json.loads((folder / "out" / "rl" / "manifest.json").read_text(encoding="utf-8"))
        if manifest["written"] != count:
            raise RuntimeError(f"{manifest['written']} of {count} records were imported: {manifest['rejected']}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    print(f"{count:,} records ({size / 1e6:.0f} MB of gzip) in {seconds:.1f} s, {peak:.2f} GB at most")
    figures = {"import_rows_per_s": round(count / seconds, 1), "import_peak_gb": round(peak, 3)}
    for figure, value in figures.items():
        target, sign = TARGETS[figure]
        print(
            f"{figure:18} {value:10,.2f}   target {target:,.2f}   {'met' if sign * (value - target) >= 0 else 'MISSED'}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
