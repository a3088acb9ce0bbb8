# SPDX-License-Identifier: Apache-2.0
"""Frames, sizes and tokens of videos and images: probing, sampling, decoding, caching."""
