# SPDX-License-Identifier: Apache-2.0
"""PA-GRPO in verl's v1 trainers: rewards, advantages, metrics, checkpoints."""
