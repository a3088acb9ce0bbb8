# SPDX-License-Identifier: Apache-2.0
"""All three steps and both exports, from one YAML file.

    inputs ──generate──▶ out/1-generate ──verify──▶ out/2-verify ──judge──▶ out/3-judge ──▶ out/sft
       └───────────────────────────────────────────────────────────────────────────────────▶ out/rl

SFT learns from the responses that pass, RL from all questions, as in the paper. Servers' replies are stored, so that a
second run, after a kill or with more records, asks only what is new.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from data_tools.records.files import files_of
from data_tools.records.locks import locked
from data_tools.steps.generate_settings import GenerateSettings
from data_tools.steps.judge import JudgeStepSettings, RecordJudge, judge
from data_tools.steps.run import OnBytes, OnRecord, StepReport, count_records
from data_tools.steps.to_parquet import ExportSettings, Kind, Report, to_parquet
from data_tools.steps.verify import VerifySettings, verify
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.settings import merge

Bar = Callable[[str, int], AbstractContextManager[OnRecord]]
"""Shows progress over records, given a name and their number."""

ByteBar = Callable[[str, Sequence[Path]], AbstractContextManager[OnBytes]]
"""Shows progress over the bytes of files, given a name and the files."""


@dataclass(frozen=True)
class BuildSettings:
    """One build.

    Args:
        inputs: files of records, or output folders of steps.
        out: folder for all outputs.
        media_root: folder that the records' paths are relative to.
        max_reject_share: the largest share of records, in [0, 1], that each step may reject.
        offline: generate on a Ray cluster instead of asking a server, see `generate_ray`.
        generate: settings of step 1.
        verify: settings of step 2.
        judge: settings of step 3.
        export: settings of the exports, except `media_root`, `check_files` and `max_reject_share`.
    """

    inputs: tuple[str, ...] = ()
    out: str = "data/build"
    media_root: str = "."
    max_reject_share: float = 0.01
    offline: bool = False
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    judge: JudgeStepSettings = field(default_factory=JudgeStepSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.max_reject_share <= 1:
            raise ValueError(f"max_reject_share is {self.max_reject_share}: give a share between 0 and 1")
        for name in ("media_root", "check_files", "max_reject_share"):
            if getattr(self.export, name) != getattr(ExportSettings(), name):
                raise ValueError(f"export.{name} is set: set {name} at the top level, for all steps")

    @classmethod
    def load(cls, path: Path) -> "BuildSettings":
        """Read a YAML file.

        Raises:
            ValueError: the file is not YAML, or has an unknown key or a wrong value.
        """
        try:
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as YAML ({error})") from None
        return merge(cls(), {} if mapping is None else mapping, str(path))


def build(settings: BuildSettings, bar: Bar, byte_bar: ByteBar) -> Iterator[tuple[Path, StepReport | Report]]:
    """Run the steps one after the other.

    Args:
        settings: settings of the build.
        bar: shows the progress of a step.
        byte_bar: shows the progress of an export.

    Yields:
        The folder and the report of each step as it ends. After a failed step the build stops.

    Raises:
        NobodyReplies: a server is down or refuses everything; replies so far are stored.
        ValueError: a setting or a folder cannot be used, or another process is writing `out`.
    """
    if not settings.inputs:
        raise ValueError("inputs is empty: name files of records, or output folders of steps")
    with locked(Path(settings.out)):
        yield from _build(settings, bar, byte_bar)


def _build(settings: BuildSettings, bar: Bar, byte_bar: ByteBar) -> Iterator[tuple[Path, StepReport | Report]]:
    from data_tools.steps.generate import generate  # takes seconds: it loads torch

    out, root, share = Path(settings.out), Path(settings.media_root).expanduser(), settings.max_reject_share
    inputs = files = files_of(settings.inputs)
    # A wrong setting of the later steps is found here, before hours of generating.
    RecordJudge(settings.judge)
    export = replace(settings.export, media_root=os.path.abspath(root), check_files=True, max_reject_share=share)
    PromptTemplate.load(export.prompt_template)
    for number, name in enumerate(("generate", "verify", "judge"), 1):
        folder = out / f"{number}-{name}"
        with bar(name, count_records(files)) as on_record:
            shared: dict[str, Any] = {"max_reject_share": share, "on_record": on_record}
            if name == "generate":
                report = generate(files, folder, settings.generate, root, offline=settings.offline, **shared)
            elif name == "verify":
                report = verify(files, folder, settings.verify, **shared)
            else:
                report = judge(files, folder, settings.judge, root=root, **shared)
        yield folder, report
        if report.failed:
            return
        files = files_of([folder])
    exports: tuple[tuple[Kind, list[Path]], ...] = (("sft", files), ("rl", inputs))
    for kind, records in exports:
        with byte_bar(f"exporting {kind}", records) as on_bytes:
            exported = to_parquet(records, out / kind, kind, export, on_bytes=on_bytes)
        yield out / kind, exported
        if exported.failed:
            return
