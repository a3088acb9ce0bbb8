# SPDX-License-Identifier: Apache-2.0
"""`verl-p2r plan`: from verl's config to the planner, and the report."""
