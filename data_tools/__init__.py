# SPDX-License-Identifier: Apache-2.0
"""Data for VideoP2R: records in, records out.

Every step reads `records.Record`s, writes records or parquet into a folder that appears whole or not at all
(`folders`), and accounts for each record it leaves out (`rejects`). Imports go down only: to the pure side of
`verl_p2r`, never to its plugin, verl or ray.
"""
