# SPDX-License-Identifier: Apache-2.0
"""Sizes of the linear-attention layers of a hybrid model: gated delta rules (arXiv 2412.06464), as Qwen3.5 has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LinearAttention:
    """The linear attention of a hybrid model's layers.

    Args:
        layers: number of the model's layers that have it in the place of full attention.
        hidden: width of the language model.
        keys: width of all key heads; queries have the same width.
        values: width of all value heads.
        heads: number of value heads.
        head_dim: width of a value head.
        key_dim: width of a key head.
        kernel: tokens that the convolution before it sees.
    """

    layers: int
    hidden: int
    keys: int
    values: int
    heads: int
    head_dim: int
    key_dim: int
    kernel: int

    @classmethod
    def from_config(cls, text: Mapping[str, Any]) -> "LinearAttention":
        """Read the text part of a config.json.

        Args:
            text: its content.

        Raises:
            KeyError: a field is missing.
        """
        kinds = text.get("layer_types")
        if kinds is None:
            full = text.get("full_attention_interval", 4)  # every fourth layer
            kinds = ["linear_attention" if (n + 1) % full else "full" for n in range(text["num_hidden_layers"])]
        return cls(
            layers=sum(kind == "linear_attention" for kind in kinds),
            hidden=text["hidden_size"],
            keys=text["linear_num_key_heads"] * text["linear_key_head_dim"],
            values=text["linear_num_value_heads"] * text["linear_value_head_dim"],
            heads=text["linear_num_value_heads"],
            head_dim=text["linear_value_head_dim"],
            key_dim=text["linear_key_head_dim"],
            kernel=text["linear_conv_kernel_dim"],
        )

    @property
    def mixed(self) -> int:
        """Width of queries, keys and values together."""
        return 2 * self.keys + self.values

    @property
    def matrices(self) -> int:
        """Parameters in the weight matrices of one layer's attention: queries to values, gate, decay, step, output."""
        return self.hidden * (self.mixed + 2 * self.values + 2 * self.heads)

    @property
    def params(self) -> int:
        """Parameters of one layer's attention: matrices, convolution, decay and bias of each head, and a norm."""
        return self.matrices + self.kernel * self.mixed + 2 * self.heads + self.head_dim

    @property
    def adapter_widths(self) -> int:
        """Sum of the input and output widths of one layer's linear layers."""
        return 5 * self.hidden + self.mixed + 2 * self.values + 2 * self.heads

    @property
    def token_operations(self) -> int:
        """Operations of one layer for a token, apart from the products with its weight matrices.

        The state of a head is read for the error of the delta rule, updated by an outer product, and read for the
        output: three times two operations for each of its numbers [ours]; kernels that work in chunks do more.
        """
        return 2 * self.kernel * self.mixed + 6 * self.heads * self.key_dim * self.head_dim
