# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r-data`, or `python -m data_tools`.

It exits with 1 if more records were rejected than `--max-reject-share` allows or a file was damaged, and with 2 if it
cannot do what it was asked to.
"""

import typer

from data_tools.commands import exports, look, pipeline

app = typer.Typer(
    help="Data for VideoP2R: generate, verify, judge, build; import, export, decontaminate; look.",
    no_args_is_help=True,
)
app.command("generate")(pipeline.generate_command)
app.command("verify")(pipeline.verify_command)
app.command("judge")(pipeline.judge_command)
app.command("build")(pipeline.build_command)
app.command("import-release")(exports.import_release_command)
app.command("to-parquet")(exports.to_parquet_command)
app.command("decontaminate")(exports.decontaminate_command)
app.command("stats")(look.stats_command)
app.command("view")(look.view_command)
