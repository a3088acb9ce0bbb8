# SPDX-License-Identifier: Apache-2.0
"""Linear attention of hybrid models: sizes by hand, and operations against torch's counter."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from verl_p2r.planner.linear_attention import LinearAttention
from verl_p2r.planner.model_shape import ModelShape

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 10,
    "linear_conv_kernel_dim": 4,
}
VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}
CONFIG = {"model_type": "qwen3_5", "text_config": TEXT, "vision_config": VISION}


def test_sizes_by_hand():
    linear = LinearAttention.from_config(TEXT)
    assert linear.layers == 3  # the fourth of four is full attention
    assert (linear.keys, linear.values, linear.mixed) == (2 * 8, 4 * 10, 2 * 16 + 40)
    assert linear.matrices == 64 * (72 + 40 + 40 + 4 + 4)  # q, k, v; gate; output; decay and step of 4 heads
    assert linear.params == linear.matrices + 4 * 72 + 4 + 4 + 10  # convolution, decay, its bias, norm
    assert linear.token_operations == 2 * 4 * 72 + 6 * 4 * 8 * 10


def test_layer_types_and_intervals_are_read():
    kinds = ["linear_attention", "full_attention", "full_attention", "linear_attention"]
    assert LinearAttention.from_config({**TEXT, "layer_types": kinds}).layers == 2
    assert LinearAttention.from_config({**TEXT, "full_attention_interval": 2}).layers == 2


def test_only_full_attention_grows_with_the_square_of_the_length_and_fills_the_cache():
    shape = ModelShape.from_config(CONFIG)
    once, twice = shape.text_operations([100]), shape.text_operations([200])
    assert twice - 2 * once == 2 * 1 * 64 * (200**2 - 2 * 100**2)  # one layer of full attention, 64 wide
    assert shape.kv_bytes() == 2 * 1 * (2 * 16) * 2


def test_matrix_products_are_those_torch_counts():
    from transformers import AutoConfig, AutoModelForImageTextToText

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    config = AutoConfig.for_model(**{**CONFIG, "text_config": {**TEXT, "rope_parameters": rope}})
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    tokens = 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        text = model.model.language_model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
        model.lm_head(text.last_hidden_state)
    counted = counter.get_flop_counts()["Global"]
    products = sum(
        flops for operation, flops in counted.items() if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    shape = ModelShape.from_config(CONFIG)
    assert products == 2 * (shape.all_layer_matrices + shape.embedding_params) * tokens
