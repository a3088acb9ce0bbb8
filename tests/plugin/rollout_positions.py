# SPDX-License-Identifier: Apache-2.0
"""What vLLM makes of a prompt, without an engine: its own multimodal processor and its model's own positions.

python rollout_positions.py MODEL   # prints what stock vLLM makes of one video; see test_vllm_video.py
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@contextlib.contextmanager
def own_configs() -> Iterator[None]:
    """Put back transformers' own config classes, some of which vLLM replaces by its own (Qwen3.5) when it reads one.

    With vLLM's, a trainer would load another class of model. It never shares a process with a server, but tests do.
    """
    registered = CONFIG_MAPPING._extra_content
    before = dict(registered)
    try:
        yield
    finally:
        registered.clear()
        registered.update(before)


@own_configs()
def vllm_processor(model: str, dtype: str, *, cached: bool = False) -> Any:
    """The processor that vLLM's server builds for a model; `cached` as from vLLM 0.22 on, else as verl has it."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = ModelConfig(
        model=model, tokenizer=model, dtype=dtype, seed=0, limit_mm_per_prompt={"image": 9, "video": 9}
    )
    if not cached:
        return MULTIMODAL_REGISTRY.create_processor(config)
    from vllm.multimodal.cache import MultiModalProcessorOnlyCache

    return MULTIMODAL_REGISTRY.create_processor(config, cache=MultiModalProcessorOnlyCache(config))


def process(processor: Any, prompt_ids: list[int], media: dict[str, list], **kwargs) -> Any:
    """Apply vLLM's processor as its server does; `media` is what verl's server passes as `multi_modal_data`."""
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    items = processor.info.parse_mm_data(media)
    return processor.apply(ProcessorInputs(prompt_ids, items, hf_processor_mm_kwargs=kwargs), TimingContext())


def seconds_per_grid(output: Any) -> list[float]:
    """`second_per_grid_ts` of each video."""
    return [item.get_data()["second_per_grid_ts"].item() for item in output["mm_kwargs"]["video"]]


def positions(processor: Any, output: Any) -> torch.Tensor:
    """Positions that vLLM's model computes for a processed prompt. Shape: (3, L)."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    config = processor.info.get_hf_config()
    module = import_module(f"vllm.model_executor.models.{config.model_type}")
    model = object.__new__(getattr(module, config.architectures[0]))  # no weights: positions need the config alone
    model.__dict__["config"] = config
    features = [
        MultiModalFeatureSpec(data=item, modality=modality, identifier=digest, mm_position=place)
        for modality, items in output["mm_kwargs"].items()
        for item, digest, place in zip(
            items, output["mm_hashes"][modality], output["mm_placeholders"][modality], strict=True
        )
    ]
    return model.get_mrope_input_positions(output["prompt_token_ids"], features)[0]


if __name__ == "__main__":
    import verl  # noqa: F401  the CPU platform

    processor = vllm_processor(sys.argv[1], "float32")
    pad = processor.info.get_hf_processor().video_token_id
    video = (torch.zeros(4, 3, 112, 112), {"fps": 4.0, "frames_indices": [0, 2, 5, 7], "total_num_frames": 8})
    output = process(processor, [200, pad, 201], {"video": [video]})
    print(json.dumps({"seconds": seconds_per_grid(output), "time": positions(processor, output)[0].tolist()}))
