# SPDX-License-Identifier: Apache-2.0
"""A tiny Qwen2.5-VL that was not trained, but whose every token has known successors, equally likely at temperature 1.

Its attention and its MLPs add nothing, so the last layer holds the embedding of the last token, and the output weights
of a successor point in that direction. It answers every prompt in the template, with an answer drawn from a few.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

TAGS = ("<observation>", "</observation>", "<think>", "</think>", "<answer>", "</answer>")
CERTAIN = 0.5  # scale of the output weights: a successor's logit is 64, others' are within about 25 of 0


def write_letters_model(folder: Path, tiny: Path, answers: Sequence[str]) -> Path:
    """Write a model whose responses differ in the answer only.

    Args:
        folder: folder to write.
        tiny: folder of the tiny model, whose size and processor this one has.
        answers: the answers, each one token; all equally likely.
    """
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(tiny)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(list(TAGS))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        embeddings.normal_()
        output.zero_()
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for token, successors in _chain(answers, tokenizer.eos_token).items():
            [own] = tokenizer.encode(token, add_special_tokens=False)
            direction = embeddings[own] / embeddings[own].square().mean().sqrt()
            for successor in successors:
                [other] = tokenizer.encode(successor, add_special_tokens=False)
                output[other] += CERTAIN * direction
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _chain(answers: Sequence[str], end: str) -> Mapping[str, Sequence[str]]:
    tags = {answer: [TAGS[5]] for answer in answers}
    chain = {"\n": [TAGS[0]], TAGS[0]: ["o"], "o": [TAGS[1]], TAGS[1]: [TAGS[2]], TAGS[2]: ["t"], "t": [TAGS[3]]}
    return {**chain, TAGS[3]: [TAGS[4]], TAGS[4]: answers, **tags, TAGS[5]: [end]}
