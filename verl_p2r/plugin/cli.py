# SPDX-License-Identifier: Apache-2.0
"""The command `verl-p2r`."""

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Process-aware reinforcement fine-tuning on verl.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Process-aware reinforcement fine-tuning on verl."""


@app.command()
def doctor() -> None:
    """Check the installation: versions, registrations in a fresh process, platform and rollout.

    Exits with 1 when something is missing.
    """
    from verl_p2r.plugin.doctor import examine

    console = Console()
    with console.status("Starting verl in a fresh process"):
        findings = examine()
    table = Table(box=None)
    for title in ("", "what", "found", "what to do"):
        table.add_column(title, overflow="fold")  # never cut: a remedy is there to be copied
    for finding in findings:
        mark = "[green]ok" if not finding.remedy else "[red]fail" if finding.fatal else "[yellow]warn"
        table.add_row(mark, finding.what, finding.found, finding.remedy)
    console.print(table)
    if any(finding.remedy and finding.fatal for finding in findings):
        raise typer.Exit(1)
