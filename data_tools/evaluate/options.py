# SPDX-License-Identifier: Apache-2.0
"""The options that several commands of `verl-p2r-eval` share."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="The folder to write; an earlier output there is replaced.")]
RunFolder = Annotated[Path, typer.Argument(help="The output of `run`.")]
Runs = Annotated[list[Path], typer.Argument(help="Outputs of `run`.")]
Protocol = Annotated[str, typer.Option(help="video_r1, official, or a YAML file of your own.")]
Prepared = Annotated[
    list[Path] | None, typer.Option(help="Where the prepared benchmarks are now, if they were moved; may be repeated.")
]
Model = Annotated[str | None, typer.Option(help="The model's name on its server.")]
BaseUrl = Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls in flight at once.")]
MaxLost = Annotated[float, typer.Option(help="Largest share of a benchmark's items that may be without a reply.")]
