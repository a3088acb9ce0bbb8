# SPDX-License-Identifier: Apache-2.0
"""All three steps and the export from one YAML file.

    inputs ──generate──▶ out/1-generate ──verify──▶ out/2-verify ──judge──▶ out/3-judge ──▶ out/sft
       └───────────────────────────────────────────────────────────────────────────────────▶ out/rl

SFT learns from the responses that have passed; RL from all questions, as in the paper. What servers have replied is
kept, so that a second run, after a kill or with more records, asks only what is new.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from data_tools.records.files import files_of
from data_tools.records.locks import locked
from data_tools.steps.generate import GenerateSettings, generate
from data_tools.steps.judge import JudgeSettings, Sufficiency, judge
from data_tools.steps.run import StepReport, Told, count_records
from data_tools.steps.to_parquet import ExportSettings, Kind, Report, to_parquet
from data_tools.steps.verify import VerifySettings, verify
from verl_p2r.settings import merge

Bar = Callable[[str, int], AbstractContextManager[Told]]
"""A progress bar: its name, and how many records there are; inside, told of each."""

ByteBar = Callable[[str, Sequence[Path]], AbstractContextManager[Callable[[int], object]]]
"""A progress bar over files: its name, and the files; inside, told how many more bytes have been read."""


@dataclass(frozen=True)
class BuildSettings:
    """One build.

    Args:
        inputs: files of records, or folders that steps have written.
        out: the folder for everything.
        media_root: the folder that the records' paths start from.
        max_reject_share: the largest share of records, in [0, 1], that each step may reject.
        offline: generate on a Ray cluster instead of asking a server, see `generate_ray`.
        generate, verify, judge, export: of the steps; the export takes its media root and its share from here.
    """

    inputs: tuple[str, ...] = ()
    out: str = "data/build"
    media_root: str = "."
    max_reject_share: float = 0.01
    offline: bool = False
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    export: ExportSettings = field(default_factory=ExportSettings)

    def __post_init__(self) -> None:
        for name in ("media_root", "check_files", "max_reject_share"):
            if getattr(self.export, name) != getattr(ExportSettings(), name):
                raise ValueError(f"export.{name} is set: set {name} beside it, for all steps")

    @classmethod
    def load(cls, path: Path) -> "BuildSettings":
        """Read a YAML file.

        Raises:
            ValueError: it is no YAML, or a key or value is not what it should be.
        """
        try:
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file") from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as YAML ({error})") from None
        return merge(cls(), {} if mapping is None else mapping, str(path))


def build(settings: BuildSettings, bar: Bar, byte_bar: ByteBar) -> Iterator[tuple[Path, StepReport | Report]]:
    """Run the steps, one after the other.

    Args:
        settings: what to do.
        bar, byte_bar: show progress.

    Yields:
        The folder and the report of each step as it ends; after one that has failed, no step follows.

    Raises:
        NobodyReplies: a server is gone or refuses everything; what has come is kept.
        ValueError: a setting or a folder cannot be used, or another process is writing `out`.
    """
    if not settings.inputs:
        raise ValueError("inputs is empty: name files of records, or folders that steps have written")
    with locked(Path(settings.out)):
        yield from _build(settings, bar, byte_bar)


def _build(settings: BuildSettings, bar: Bar, byte_bar: ByteBar) -> Iterator[tuple[Path, StepReport | Report]]:
    out, root, share = Path(settings.out), Path(settings.media_root).expanduser(), settings.max_reject_share
    inputs = files = files_of(settings.inputs)
    Sufficiency(settings.judge)  # a judge that cannot be made is found before hours of generating
    for number, name in enumerate(("generate", "verify", "judge"), 1):
        folder = out / f"{number}-{name}"
        with bar(name, count_records(files)) as told:
            if name == "generate":
                report = generate(
                    files, folder, settings.generate, root, offline=settings.offline, max_reject_share=share, told=told
                )
            elif name == "verify":
                report = verify(files, folder, settings.verify, max_reject_share=share, told=told)
            else:
                report = judge(files, folder, settings.judge, max_reject_share=share, root=root, told=told)
        yield folder, report
        if report.failed:
            return
        files = files_of([folder])
    export = replace(settings.export, media_root=os.path.abspath(root), check_files=True, max_reject_share=share)
    exports: tuple[tuple[Kind, list[Path]], ...] = (("sft", files), ("rl", inputs))
    for kind, records in exports:
        with byte_bar(f"exporting {kind}", records) as on_bytes:
            exported = to_parquet(records, out / kind, kind, export, on_bytes=on_bytes)
        yield out / kind, exported
        if exported.failed:
            return
