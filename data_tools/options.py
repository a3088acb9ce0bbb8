# SPDX-License-Identifier: Apache-2.0
"""Options shared by several commands of `verl-p2r-data`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from verl_p2r.cpus import available_cpus

WORKERS = available_cpus()

Inputs = Annotated[
    list[str], typer.Argument(help="Files of records (JSON or JSON lines, .gz or not), or the output folder of a step.")
]
Out = Annotated[Path, typer.Option(help="The folder to write; an earlier output there is replaced.")]
ValShare = Annotated[float, typer.Option(min=0, max=1, help="Share of media whose records are for validation.")]
MediaRoot = Annotated[str | None, typer.Option(help="Folder of the media, written in front of their paths.")]
CheckMedia = Annotated[bool, typer.Option(help="Decode every medium, and reject the records of those that fail.")]
Workers = Annotated[int, typer.Option(min=1, help="Media decoded at a time.")]
Template = Annotated[str, typer.Option(help="Prompt template: one of the package's templates, or a text file.")]
Config = Annotated[
    Path | None, typer.Option(help="A YAML file of `build`, which holds all other settings of this step.")
]
MaxRejects = Annotated[float, typer.Option(min=0, max=1, help="Largest share of records that may be rejected.")]
StepRejects = Annotated[
    float | None, typer.Option(min=0, max=1, help="Largest share of records that may be rejected; 0.01 by default.")
]


class ExportKind(str, Enum):
    """What an export is for."""

    sft = "sft"
    rl = "rl"


class By(str, Enum):
    """What is compared to decide whether a record occurs in a benchmark."""

    medium = "medium"
    question = "question"
    both = "both"
