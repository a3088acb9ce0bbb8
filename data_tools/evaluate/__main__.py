# SPDX-License-Identifier: Apache-2.0
"""`python -m data_tools.evaluate`: the command `verl-p2r-eval`."""

from data_tools.evaluate.cli import app

if __name__ == "__main__":
    app(prog_name="verl-p2r-eval")
