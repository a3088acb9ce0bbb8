# SPDX-License-Identifier: Apache-2.0
"""What we add to verl's FSDP engine: one vision tower call for each micro-batch, and the shared prefix."""
