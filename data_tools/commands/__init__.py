# SPDX-License-Identifier: Apache-2.0
"""The commands of `verl-p2r-data`. Each imports what it needs when it runs, so that `--help` answers at once."""
