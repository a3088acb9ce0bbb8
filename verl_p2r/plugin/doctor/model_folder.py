# SPDX-License-Identifier: Apache-2.0
"""Checks that a model's files are on this machine and complete."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from verl_p2r.media.families import family_of_model, known_families
from verl_p2r.plugin.doctor.finding import Finding

SHARDS = "*.index.json"  # names the files of weights that are split
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SHOWN = 3  # missing files that are named


def find_model(path: str | None) -> Path | None:
    """Return the folder of a model: a local one, or the Hub's cache; None when there is neither.

    Args:
        path: a folder, or a name on the Hub.
    """
    if not path:
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    cached = try_to_load_from_cache(path, "config.json") if path.count("/") == 1 and path[0] not in "./~" else None
    return Path(cached).parent if isinstance(cached, str) else None


def check_model(what: str, path: str | None, has_processor: bool = True) -> Iterator[Finding]:
    """Check that a model is here and complete.

    Args:
        what: what the run does with it, the first column of the report.
        path: a folder, or a name on the Hub.
        has_processor: whether it must be a video language model of a family that we know.
    """
    if not path:
        yield Finding(what, "no model is set", "set model.path (MODEL for a script)")
        return
    folder = find_model(path)
    if folder is None:
        yield _not_here(what, path)
        return
    missing, remedy = _missing(folder, has_processor)
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        yield Finding(what, f"{folder} has no {', '.join(missing[:SHOWN])}{more}", remedy)
        return
    try:
        model_type = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        yield Finding(what, f"{folder}/config.json cannot be read: {error!r}", "download or save the model again")
        return
    if has_processor and family_of_model(model_type) is None:
        remedy = f"frame times would be lost: use a model of {known_families()}"
        yield Finding(what, f"{path}: model_type {model_type!r} is not a family that is supported", remedy)
        return
    yield Finding(what, f"{path} ({model_type})")


def _not_here(what: str, path: str) -> Finding:
    if path.count("/") != 1 or path[0] in "./~":
        remedy = "give a folder that exists, or a name on the Hub; an SFT run writes …/global_step_N/huggingface"
        return Finding(what, f"{path}: there is no such folder", remedy)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    remedy = f"hf download {path}" + (", with HF_HUB_OFFLINE unset" if offline else "; a run downloads it otherwise")
    return Finding(what, f"{path}: is not in the Hub's cache on this machine", remedy, fatal=offline)


def _missing(folder: Path, has_processor: bool) -> tuple[list[str], str]:
    """Return the files that a model's folder lacks, and what to do."""
    again = "download or save the model again"
    if not (folder / "config.json").is_file():
        shards = any(folder.glob("model_world_size_*")) or (folder / "huggingface").is_dir()
        inside = "; in a checkpoint of verl it is the folder huggingface, or merge its shards with verl.model_merger"
        return ["config.json"], "give the model's own folder" + (inside if shards else "")
    for index in folder.glob(SHARDS):
        try:
            named = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):  # a download that was cut off
            return [f"readable {index.name}"], again
        if lost := [name for name in named if not (folder / name).is_file()]:
            return lost, again
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        merge = "merge them: python -m verl.model_merger merge --backend fsdp --local_dir …/actor --target_dir …"
        return ["weights"], f"{again}; if it is a checkpoint of verl without hf_model in its save_contents, {merge}"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return ["tokenizer"], again
    if has_processor and not any((folder / name).is_file() for name in PROCESSORS):
        return [PROCESSORS[0]], "copy it from the model that training started from"
    return [], ""
