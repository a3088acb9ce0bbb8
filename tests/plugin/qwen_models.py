# SPDX-License-Identifier: Apache-2.0
"""The other Qwen-VL families as Hugging Face folders without weights: processor and config, at the tests' size."""

from pathlib import Path

import make_model

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {"depth": 1, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 1 << 20}  # wide enough that no frame of the tests is resized


def save(folder: Path, family: str) -> Path:
    """Write `family`'s ("qwen2_vl", "qwen3_vl", "qwen3_5") config and processor, with the quickstart's tokenizer."""
    tokenizer = make_model.build_tokenizer()
    processor, config = {"qwen2_vl": _qwen2_vl, "qwen3_vl": _qwen3_vl, "qwen3_5": _qwen3_5}[family](tokenizer)
    for token, text in (
        ("image_token_id", make_model.IMAGE),
        ("video_token_id", make_model.VIDEO),
        ("vision_start_token_id", make_model.VISION_START),
        ("vision_end_token_id", make_model.VISION_END),
    ):
        setattr(config, token, tokenizer.convert_tokens_to_ids(text))
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    return folder


def _qwen2_vl(tokenizer):
    from transformers import Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PIXELS),
        chat_template=tokenizer.chat_template,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={**VISION, "embed_dim": 32, "hidden_size": 64, "patch_size": 14},
        architectures=["Qwen2VLForConditionalGeneration"],
    )
    return processor, config


def _timestamps_processor(tokenizer):
    """The processor of Qwen3-VL, which Qwen3.5 shares."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    size = {"shortest_edge": PIXELS["min_pixels"], "longest_edge": PIXELS["max_pixels"]}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, **PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size),
        chat_template=tokenizer.chat_template,
    )


def _qwen3_vl(tokenizer):
    from transformers import Qwen3VLConfig

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "rope_parameters": rope},
        vision_config={
            **VISION,
            "hidden_size": 32,
            "intermediate_size": 32,
            "out_hidden_size": 64,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
        },
        architectures=["Qwen3VLForConditionalGeneration"],
    )
    return _timestamps_processor(tokenizer), config


def _qwen3_5(tokenizer):
    from transformers import Qwen3_5Config

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4}
    linear["mamba_ssm_dtype"] = "float32"  # vLLM keeps the state in it; as in the published configs
    linear |= {"linear_key_head_dim": 64, "linear_value_head_dim": 64}  # the smallest that vLLM's CPU kernel runs
    config = Qwen3_5Config(
        text_config={
            **TEXT,
            **linear,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "vocab_size": len(tokenizer),
            "head_dim": 32,
            # The family's own share. Another is lost in vLLM, which reads a default of 0.25 that transformers saves.
            "rope_parameters": {**rope, "partial_rotary_factor": 0.25},
        },
        vision_config={**VISION, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 64, "patch_size": 16},
        architectures=["Qwen3_5ForConditionalGeneration"],
    )
    return _timestamps_processor(tokenizer), config
