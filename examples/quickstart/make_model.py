# SPDX-License-Identifier: Apache-2.0
"""Write a tiny Qwen2.5-VL with random weights, its tokenizer trained on the task's own text, as a Hugging Face folder.

    python examples/quickstart/make_model.py OUT --seed 0

Everything but the size is Qwen2.5-VL's own: architecture, processor, special tokens, chat template. One model serves
the easy and the hard task. The folder appears only when it is whole; a second run with the same arguments leaves it as
it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import task  # noqa: E402

from verl_p2r.data.prompt_template import PromptTemplate  # noqa: E402
from verl_p2r.media import torchvision_ops  # noqa: E402

torchvision_ops.install()  # before transformers imports torchvision; does nothing where torchvision is whole

PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
HIDDEN, LAYERS, HEADS, KV_HEADS = 128, 2, 4, 2
VISION_HIDDEN, VISION_LAYERS, VISION_HEADS = 64, 2, 2
TEXT_SCALE, VISION_SCALE = 0.08, 0.12
"""Standard deviations of the initial weights; the usual 0.02 learns too slowly from scratch."""
TOKENS_PER_SECOND = 2


def corpus(lines: int = 4000) -> Iterator[str]:
    """Text with every word of the task, easy and hard, for the tokenizer."""
    rng, template = random.Random(0), PromptTemplate.load(str(HERE / "prompt.txt"))
    for _ in range(lines):
        level = rng.choice((task.EASY, task.HARD))
        kind = rng.choice(task.KINDS)
        scene = task.sample_scene(rng, level, "sft_train", rng.choice(task.families(kind)))
        question = task.ask(rng, level, kind)
        text = task.noisy_response(rng, level, question, task.true_values(scene))
        prompt = template.render(question.text, question.problem_type)
        yield f"system\nYou are a helpful assistant.\nuser\n{prompt}\nassistant\n{text}\n"


def build_tokenizer():
    """Train a byte-level BPE in which each word of the task is one token, with and without a space before it."""
    from transformers import PreTrainedTokenizerFast

    specials = [PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,  # more than the corpus can fill: training ends when every word is whole
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=specials,
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[1:],
        model_max_length=4096,
        chat_template=(HERE / "chat_template.jinja").read_text().removesuffix("\n"),
    )


def build_processor():
    """Make the processor, with pixel limits at the task's frame size so that no frame is ever resized."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = build_tokenizer()
    sizes = {
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE,
        "min_pixels": task.SIDE**2,
        "max_pixels": task.SIDE**2,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )


def build_config(tokenizer):
    """Configure a Qwen2.5-VL for a tokenizer.

    The vocabulary is exactly the tokenizer's: rollout engines mask ids beyond it, trainers do not, and padding rows
    would set the two's probabilities apart.
    """
    from transformers import Qwen2_5_VLConfig

    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids(PAD),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
    }
    text = {
        **ids,
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "use_sliding_window": False,
        "max_window_layers": LAYERS,
        "initializer_range": TEXT_SCALE,
    }
    vision = {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_HIDDEN,
        "intermediate_size": 2 * VISION_HIDDEN,
        "num_heads": VISION_HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "window_size": task.SIDE,
        "fullatt_block_indexes": [VISION_LAYERS - 1],
        "out_hidden_size": HIDDEN,
        "tokens_per_second": TOKENS_PER_SECOND,
        "initializer_range": VISION_SCALE,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_start_token_id=tokenizer.convert_tokens_to_ids(VISION_START),
        vision_end_token_id=tokenizer.convert_tokens_to_ids(VISION_END),
        tie_word_embeddings=False,
    )


def save(folder: Path, seed: int) -> int:
    """Write model and processor.

    Returns:
        The number of parameters.
    """
    import torch
    from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

    processor = build_processor()
    config = build_config(processor.tokenizer)
    text = config.text_config
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.num_parameters()


def make(out: Path, seed: int) -> bool:
    """Write the model's folder unless it stands already.

    Returns:
        Whether anything was written.

    Raises:
        SystemExit: ``out`` holds something that this script did not write.
    """
    out = out.resolve()
    files = ("task.py", "prompt.txt", "make_model.py", "chat_template.jinja")
    code = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in files)).hexdigest()
    wanted, record = {"seed": seed, "code": code}, out / "manifest.json"
    if record.is_file() and json.loads(record.read_text()) == wanted:
        return False
    if out.exists() and not record.is_file() and any(out.iterdir()):
        raise SystemExit(f"{out} holds files but no manifest.json of make_model.py: name another folder or remove it")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"{save(partial, seed):,} parameters")
    (partial / "manifest.json").write_text(json.dumps(wanted, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'wrote' if make(arguments.out, arguments.seed) else 'kept'} {arguments.out}")
