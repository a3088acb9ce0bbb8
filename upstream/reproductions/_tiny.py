# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen2.5-VL with random weights, made in memory: a byte-level tokenizer, the family's processor, two layers."""

import functools
import tempfile
from typing import Any

import torch

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SIDE = 56  # pixels: 4 x 4 patches, 2 x 2 tokens for each pair of frames
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def folder() -> str:
    """A folder with config and processor, as verl loads them."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    path = _directory().name
    sizes = {"min_pixels": SIDE**2, "max_pixels": SIDE**2}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=TEMPLATE,
    ).save_pretrained(path)
    config().save_pretrained(path)
    return path


@functools.cache
def _directory() -> tempfile.TemporaryDirectory:
    """Made once, and removed when the process ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def processor() -> Any:
    """The processor as verl makes it, with the model's own position function bound to it."""
    from verl.utils import hf_processor

    return hf_processor(folder())


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE, VIDEO],
        chat_template=TEMPLATE,
    )


def config() -> Any:
    """The model's config."""
    from transformers import Qwen2_5_VLConfig

    tokenizer = _tokenizer()
    ids = dict(zip(("image", "video"), tokenizer.convert_tokens_to_ids([IMAGE, VIDEO]), strict=True))
    marks = dict(zip(("start", "end"), tokenizer.convert_tokens_to_ids([VISION_START, VISION_END]), strict=True))
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "tokens_per_second": 2,
            "fullatt_block_indexes": [1],
        },
        **{f"{kind}_token_id": token for kind, token in ids.items()},
        **{f"vision_{end}_token_id": token for end, token in marks.items()},
    )


@functools.cache
def model() -> Any:
    """The model, with verl's replacements of its forward."""
    from transformers import Qwen2_5_VLForConditionalGeneration
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    torch.manual_seed(0)
    made = Qwen2_5_VLForConditionalGeneration(config()).eval()
    apply_monkey_patch(made, use_remove_padding=False)
    return made


def inputs(*media: tuple[str, tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    """A micro-batch of one row, as verl's engine hands it to the model.

    Args:
        media: (`image` or `video`, grid (t, h, w)) of each medium.
    """
    settings = config()
    ids: list[int] = [1, 2, 3]
    tensors: dict[str, torch.Tensor] = {}
    for kind, (t, h, w) in media:
        token = settings.image_token_id if kind == "image" else settings.video_token_id
        ids += [settings.vision_start_token_id, *[token] * (t * h * w // 4), settings.vision_end_token_id]
        tensors["pixel_values" if kind == "image" else "pixel_values_videos"] = torch.rand(t * h * w, 3 * 2 * 14 * 14)
        tensors[f"{kind}_grid_thw"] = torch.tensor([[t, h, w]])
    row = torch.tensor([[*ids, 4, 5, 6]])
    positions = torch.arange(row.shape[1]).expand(4, 1, -1)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "position_ids": positions, **tensors}


def frames(count: int) -> list:
    """Pictures of a clip."""
    from PIL import Image

    return [Image.new("RGB", (SIDE, SIDE), (20 * n, 0, 0)) for n in range(count)]
