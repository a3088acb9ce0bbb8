# SPDX-License-Identifier: Apache-2.0
"""The reader of records, which training shares: it is `verl_p2r.reading`."""

from verl_p2r.reading import CHUNK as CHUNK
from verl_p2r.reading import RawRecord as RawRecord
from verl_p2r.reading import read_values as read_values
