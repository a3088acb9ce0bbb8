# SPDX-License-Identifier: Apache-2.0
"""What we add to verl's FSDP engine.

One call of the vision tower for each micro-batch, split over Ulysses ranks; a frozen tower, whose features are made
once a step; the shared prefix; and log-probabilities without a loop over tokens.
"""
