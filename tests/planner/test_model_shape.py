# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, against transformers' own models (on the meta device), peft's adapters and torch's counter."""

import json

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from verl_p2r.media.families import QWEN2_5_VL, QWEN3_VL
from verl_p2r.media.plan import VisionSpec
from verl_p2r.planner.model_shape import TABLE, ModelShape, find_shape

MODELS = yaml.safe_load(TABLE.read_text())["models"]


def build(config: dict, **changes):
    """transformers' model of a config, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(**{**config, **changes})
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_equal_transformers_models(name):
    shape = find_shape(f"Qwen/{name}-Instruct")[0]
    model = build(MODELS[name])
    assert shape.params == sum(p.numel() for p in model.parameters())
    assert shape.vision_params == sum(p.numel() for p in model.model.visual.parameters())
    full = [layer for layer in model.model.language_model.layers if hasattr(layer, "self_attn")]
    assert len(full) == shape.full_layers
    layer = full[0]
    assert shape.layer_params == sum(p.numel() for p in layer.parameters())
    wrapped = [*model.model.language_model.layers, *model.model.visual.blocks]
    assert shape.root_params == shape.params - sum(p.numel() for unit in wrapped for p in unit.parameters())


PUBLISHED = {  # the model pages' "total parameters" of the safetensors files
    "Qwen2-VL-2B": 2_208_985_600,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen3-VL-8B": 8_767_123_696,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_published_counts(name):
    assert find_shape(name)[0].params == PUBLISHED[name]


@pytest.mark.parametrize("vision", [False, True], ids=["text", "vision"])
@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3.5-9B"])
def test_lora_parameter_counts_equal_peft(name, vision):
    from peft import LoraConfig, get_peft_model

    small = {**MODELS[name], "text_config": {**MODELS[name]["text_config"], "num_hidden_layers": 4}}
    adapted = get_peft_model(
        build(small),
        LoraConfig(r=8, target_modules="all-linear", exclude_modules=None if vision else ".*visual.*"),
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert ModelShape.from_config(small).lora_params(8, vision) == trained


@pytest.fixture(params=["Qwen2-VL-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def small(request):
    """A family's model small enough to run, and its shape."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = MODELS[request.param]
    text = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 500}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}}
    vision = {"depth": 8, "embed_dim" if "2-" in request.param else "hidden_size": 160, "num_heads": 4}
    vision |= {"fullatt_block_indexes": [7]} if "2.5" in request.param else {}
    vision |= {"deepstack_visual_indexes": [1, 3, 5]} if "3-" in request.param else {}
    whole = {key: {**config[key], **more} for key, more in (("text_config", text), ("vision_config", vision))}
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(**{**config, **whole}), attn_implementation="eager"
    )
    return model.eval(), ModelShape.from_config({**config, **whole})


def test_language_model_flops_equal_torch_flop_counter(small):
    model, shape = small
    length = 192
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # Part by part: where a test has trained in this process, verl has put its own forward in place of the whole's.
        text = model.model.language_model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False)
        model.lm_head(text.last_hidden_state)
    both_halves = 2 * shape.layers * shape.queries * length**2  # eager attention computes what the mask hides, too
    rotary = 2 * 3 * 32 * length  # a product with the positions gives the angles
    assert counter.get_total_flops() == pytest.approx(shape.text_operations([length]) + both_halves, abs=rotary)


def test_vision_tower_flops_equal_torch_flop_counter(small):
    model, shape = small
    patches = 16 * 16
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.visual(torch.zeros(patches, shape.vision.patch), grid_thw=torch.tensor([[1, 16, 16]]))
    assert counter.get_total_flops() == pytest.approx(shape.vision_operations(patches, patches), rel=1e-3)


def test_7b_token_takes_56_kib_of_kv_cache():
    assert find_shape("Qwen2.5-VL-7B")[0].kv_bytes() == 2 * 28 * 4 * 128 * 2 == 56 * 1024


def test_shape_is_read_from_model_folder_config(tiny_model):
    from transformers import AutoModelForImageTextToText

    shape, spec, source = find_shape(str(tiny_model))
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    assert shape.params == sum(p.numel() for p in model.parameters())
    assert spec is None
    assert source == str(tiny_model / "config.json")


def test_flat_and_nested_configs_give_same_shape():
    nested = MODELS["Qwen2.5-VL-3B"]
    flat = {key: value for key, value in nested.items() if key != "text_config"} | nested["text_config"]
    assert ModelShape.from_config(flat) == ModelShape.from_config(nested)


def test_processor_specs_of_published_models_are_known():
    assert find_shape("Qwen/Qwen2.5-VL-7B-Instruct")[1] == VisionSpec(
        QWEN2_5_VL, 14, 2, 2, (56 * 56, 12845056), (56 * 56, 12845056)
    )
    assert find_shape("Qwen3-VL-8B-Thinking/")[1] == VisionSpec(
        QWEN3_VL, 16, 2, 2, (256 * 256, 4096 * 4096), (4096, 25165824)
    )


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "no field 'hidden_size'"),
        ([], "config.json"),
    ],
)
def test_unsupported_model_configs_are_refused_with_path(config, what, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=what) as caught:
        find_shape(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, None, 1.5, "8", True], ids=repr)
@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"])
def test_invalid_size_in_model_config_is_named(name, value):
    shown = "null" if value is None else repr(value)
    config = MODELS["Qwen2.5-VL-7B"]
    text = {**(config.get("text_config") or config), name: value}
    with pytest.raises(ValueError, match=f"its config has {name}={shown}: it must be a whole number"):
        ModelShape.from_config({**config, "text_config": text})
    vision = {**config["vision_config"], "spatial_merge_size": value}
    with pytest.raises(
        ValueError, match=rf"its config has vision_config\.spatial_merge_size={shown}: it must be a whole number"
    ):
        ModelShape.from_config({**config, "vision_config": vision})


def test_unknown_model_name_error_lists_known_names():
    with pytest.raises(
        ValueError, match=r"nowhere/model is neither a folder with a config\.json nor one of Qwen2-VL-2B"
    ):
        find_shape("nowhere/model")
