# SPDX-License-Identifier: Apache-2.0
"""`python -m data_tools`: the command `verl-p2r-data`."""

from data_tools.cli import app

app(prog_name="verl-p2r-data")
