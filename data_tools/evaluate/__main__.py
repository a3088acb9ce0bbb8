# SPDX-License-Identifier: Apache-2.0
from data_tools.evaluate.cli import app

if __name__ == "__main__":
    app(prog_name="verl-p2r-eval")
