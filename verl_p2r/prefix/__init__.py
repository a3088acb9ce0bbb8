# SPDX-License-Identifier: Apache-2.0
"""Rows that share a prefix: how they are grouped, packed and distributed over ranks. Needs torch only."""
