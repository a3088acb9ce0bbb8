# SPDX-License-Identifier: Apache-2.0
"""Show the trained model a held-out video and print what it observes, thinks and answers.

    python examples/quickstart/ask.py [--item 3]

Loads the final checkpoint twice, as a user would: with transformers (every weight must fit), and with vLLM to answer.
"""

from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from conversations import conversation
from inference import Model
from rich.console import Console
from transformers import Qwen2_5_VLForConditionalGeneration

from verl_p2r.template import parse_response

console = Console()


def load_with_transformers(folder: Path) -> int:
    """Load the folder with transformers and count its parameters.

    Raises:
        RuntimeError: when a weight is missing, left over or of another shape.
    """
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: keys for kind, keys in report.items() if keys}
    if wrong:
        raise RuntimeError(f"{folder}: weights do not fit the model: {wrong}")
    return sum(parameter.numel() for parameter in model.parameters())


def main(
    item: int = typer.Option(0, help="Which held-out item."),
    checkpoint: Annotated[Path, typer.Option(exists=True, file_okay=False)] = Path("outputs/quickstart/rl/model"),
    data: Annotated[Path, typer.Option(exists=True)] = Path("outputs/quickstart/data/rl_val.parquet"),
) -> None:
    """Ask about one held-out video."""
    rows = pq.read_table(data).to_pylist()
    if not 0 <= item < len(rows):
        raise typer.BadParameter(f"there are {len(rows)} items: give --item between 0 and {len(rows) - 1}")
    row = rows[item]
    parameters = load_with_transformers(checkpoint)
    text = Model(checkpoint).answer([conversation(row["prompt"], row["videos"])], temperature=0.0)[0]
    parsed = parse_response(text)
    console.print(f"[dim]{checkpoint} loads with transformers: {parameters:,} parameters, every weight fits")
    console.print(f"video        {row['videos'][0]['video']}")
    console.print(f"question     {row['extra_info']['question']}")
    console.print(f"[green]observation[/]  {parsed.observation}")
    console.print(f"[blue]think[/]        {parsed.think}")
    console.print(f"[blue]answer[/]       {parsed.answer}   [dim](correct: {row['reward_model']['ground_truth']})")


if __name__ == "__main__":
    typer.run(main)
