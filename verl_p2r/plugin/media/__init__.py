# SPDX-License-Identifier: Apache-2.0
"""Media in verl's agent loop and in vLLM: decoded once, processed once, with true positions."""
