# SPDX-License-Identifier: Apache-2.0
"""Data for VideoP2R: records in, records out.

Every step reads records, writes records or parquet into a folder that appears whole or not at all (`records.folders`),
and lists each record that it leaves out (`records.left_out`). It uses `verl_p2r` without its plugin, verl or Ray.
"""
