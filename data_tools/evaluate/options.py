# SPDX-License-Identifier: Apache-2.0
"""Options shared by several commands of `verl-p2r-eval`."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="The folder to write; an earlier output there is replaced.")]
RunFolder = Annotated[Path, typer.Argument(help="An output of `run`.")]
Runs = Annotated[list[Path], typer.Argument(help="Outputs of `run`.")]
Protocol = Annotated[str, typer.Option(help="video_r1, official, or a YAML file.")]
Prepared = Annotated[
    list[Path] | None, typer.Option(help="Where the prepared benchmarks are now, if they have moved; may be repeated.")
]
Model = Annotated[str | None, typer.Option(help="Name of the model on its server.")]
BaseUrl = Annotated[list[str] | None, typer.Option(help="A server, http://…/v1; may be repeated.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Calls in flight at once.")]
MaxLost = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of a benchmark's items that may have no reply.")
]
TrainedOn = Annotated[
    list[Path] | None, typer.Option(help="Training records to look for the items in; may be repeated.")
]
