# SPDX-License-Identifier: Apache-2.0
"""Units of size."""

GIB = 2**30  # bytes in a gibibyte
