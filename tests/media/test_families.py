# SPDX-License-Identifier: Apache-2.0
"""The table of model families: it matches the libraries, and no other file compares a family's name."""

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT

from verl_p2r.media.families import FAMILIES, family_of_model, family_of_processor
from verl_p2r.plugin.media.vllm_video import REPAIRS

TABLE = ROOT / "verl_p2r" / "media" / "families.py"
NAMES = re.compile("|".join(re.escape(name) for f in FAMILIES for name in (f.model_type, f.processor)))
SOURCES = [path for top in ("verl_p2r", "data_tools") for path in sorted((ROOT / top).rglob("*.py")) if path != TABLE]


def names_in(source: str) -> list[str]:
    """String constants of a module that contain a family's name; docstrings may."""
    tree = ast.parse(source)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in strings if id(node) not in docs and NAMES.search(node.value)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_family_table_mentions_family_names(path: Path):
    assert names_in(path.read_text(encoding="utf-8")) == []


def test_family_name_search_finds_names():
    assert names_in('"""About qwen3_vl."""\nif kind == "qwen3_vl": pass') == ["qwen3_vl"]
    assert names_in('KINDS = {"Qwen2VLProcessor": 1}\ndef f():\n    "qwen2_vl"') == ["Qwen2VLProcessor"]
    assert "qwen2_vl" in names_in(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_family_table_matches_transformers_classes(family):
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText

    assert isinstance(getattr(transformers, family.processor), type)
    config = AutoConfig.for_model(family.model_type, text_config={"num_hidden_layers": 1}, vision_config={"depth": 1})
    tower = config.vision_config
    assert hasattr(tower, family.tower.width_field)
    assert hasattr(tower, family.tower.out_field)
    assert getattr(tower, "window_size", 0) == family.tower.window
    assert getattr(tower, "num_position_embeddings", 0) == family.tower.positions
    assert getattr(tower, "mlp_ratio", 0) == family.tower.mlp_ratio
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert hasattr(model.model, family.tower.name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_family_is_found_by_model_type_and_processor_name(family):
    assert family_of_model(family.model_type) is family
    found = family_of_processor(type(family.processor, (), {})())
    assert found is next(other for other in FAMILIES if other.processor == family.processor)
    for name in ("time", "image_pixels", "video_pixels", "limits_whole_videos"):  # what the processor decides
        assert getattr(found, name) == getattr(family, name)


def test_unknown_names_have_no_family():
    assert family_of_model(None) is None
    assert family_of_model("qwen2_vl_text") is None
    assert family_of_processor(None) is None


def test_vllm_modules_in_family_table_have_replaced_classes():
    from importlib import import_module

    for family in FAMILIES:
        for module, prefix in family.vllm_models:
            assert family.time in REPAIRS
            models = import_module(f"vllm.model_executor.models.{module}")
            assert hasattr(models, f"{prefix}ForConditionalGeneration")
