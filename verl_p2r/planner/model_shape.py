# SPDX-License-Identifier: Apache-2.0
"""How large a Qwen-VL model is, told from its config.json: parameters, operations, bytes of its key-value cache."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from verl_p2r.media.plan import VisionSpec

TABLE = Path(__file__).with_name("model_shapes.yaml")
SIZES = (  # fields of a config.json that are counted with, of the text or of the vision tower
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "depth", "embed_dim", "out_hidden_size", "in_channels"),
    *("patch_size", "temporal_patch_size", "spatial_merge_size", "num_position_embeddings"),
)


@dataclass(frozen=True)
class Vision:
    """The vision tower, merger included.

    Args:
        depth: number of blocks.
        width: of the blocks; `inner` of their MLPs, `out` of what the language model gets.
        patch: values in a patch: channels × frames × height × width.
        merge: patches merged into one token.
        window: patches that attend to each other in the blocks with windows; 0 without windows.
        full: blocks whose patches attend to all of their temporal grid.
        positions: learnt position embeddings.
        deepstack: further mergers.
    """

    depth: int
    width: int
    inner: int
    out: int
    patch: int
    merge: int
    window: int = 0
    full: int = 0
    positions: int = 0
    deepstack: int = 0


@dataclass(frozen=True)
class ModelShape:
    """A Qwen-VL model's sizes, the fields of its config.json in short; see the properties for what follows.

    Args:
        kind: `qwen2_vl`, `qwen2_5_vl` or `qwen3_vl`.
        hidden, inner: widths of the language model and of its MLPs.
        layers, heads, kv_heads, head_dim, vocab, context: of the language model.
        tied: the output layer is the input embedding.
        vision: of the vision tower.
    """

    kind: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool
    vision: Vision

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a config.json; those of Qwen2-VL and Qwen2.5-VL may have the text's fields at the top.

        Raises:
            ValueError: another family, or a field is missing or holds no size.
        """
        kind = str(config.get("model_type"))
        if kind not in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
            raise ValueError(f"model_type is {kind!r}: only qwen2_vl, qwen2_5_vl and qwen3_vl can be planned")
        text, vision = config.get("text_config") or config, config.get("vision_config") or {}
        try:
            _check_sizes(text, "")
            _check_sizes(vision, "vision_config.")
            return cls(
                kind=kind,
                hidden=text["hidden_size"],
                inner=text["intermediate_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
                vocab=text["vocab_size"],
                context=text["max_position_embeddings"],
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                vision=_vision(kind, vision),
            )
        except KeyError as error:
            raise ValueError(f"its config has no field {error}: it cannot be planned") from error

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Parameters of a decoder layer that a token is multiplied with."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.inner)

    @property
    def layer_params(self) -> int:
        """Parameters of a decoder layer: matrices, norms, and biases or norms of queries and keys."""
        small = 2 * self.head_dim if self.kind == "qwen3_vl" else self.queries + 2 * self.keys
        return self.layer_matrices + 2 * self.hidden + small

    @property
    def embedding_params(self) -> int:
        """Parameters of the input embedding; those of the output layer are as many, unless it is tied."""
        return self.vocab * self.hidden

    @property
    def block_matrices(self) -> int:
        """Parameters of a vision block that a patch is multiplied with."""
        v = self.vision
        return 4 * v.width**2 + (3 if self.kind == "qwen2_5_vl" else 2) * v.width * v.inner

    @property
    def vision_params(self) -> int:
        """Parameters of the vision tower, its mergers included."""
        v, wide = self.vision, self.vision.width * self.vision.merge
        norm = v.width if self.kind == "qwen2_5_vl" else 2 * v.width  # RMSNorm has no bias
        biases = 4 * v.width + v.width + (2 if self.kind == "qwen2_5_vl" else 1) * v.inner
        block = self.block_matrices + biases + 2 * norm
        entry = v.patch * v.width + (v.width if self.kind == "qwen3_vl" else 0) + v.positions * v.width
        merger = self.merger_matrices + wide + v.out
        return entry + v.depth * block + merger + norm + v.deepstack * (merger + 2 * wide)

    @property
    def merger_matrices(self) -> int:
        """Parameters of a merger that a token is multiplied with."""
        wide = self.vision.width * self.vision.merge
        return wide * (wide + self.vision.out)

    @property
    def params(self) -> int:
        """All parameters, tied ones once."""
        outside = (1 if self.tied else 2) * self.embedding_params + self.hidden
        return outside + self.layers * self.layer_params + self.vision_params

    @property
    def root_params(self) -> int:
        """Parameters outside of the layers and blocks that FSDP wraps: it holds them gathered for a whole pass."""
        v = self.vision
        block = (self.vision_params - self._vision_outside) // v.depth
        return self.params - self.layers * self.layer_params - v.depth * block

    @property
    def _vision_outside(self) -> int:
        blockless = Vision(**{**vars(self.vision), "depth": 0})
        return ModelShape(**{**vars(self), "vision": blockless}).vision_params

    def lora_params(self, rank: int, vision: bool) -> int:
        """Parameters of adapters on all linear layers (peft's `all-linear`), the output layer left out.

        Args:
            rank: of the adapters.
            vision: whether the vision tower's layers have them, too.
        """
        attention = 4 * self.hidden + 2 * self.queries + 2 * self.keys
        total = self.layers * (attention + 3 * (self.hidden + self.inner))
        if vision:
            v, wide = self.vision, self.vision.width * self.vision.merge
            mlp = (3 if self.kind == "qwen2_5_vl" else 2) * (v.width + v.inner)
            total += v.depth * (6 * v.width + mlp) + (1 + v.deepstack) * (3 * wide + v.out)
        return rank * total

    def text_operations(self, lengths: list[float]) -> float:
        """Floating-point operations of a forward pass of the language model, causal attention and logits included.

        Args:
            lengths: of the sequences, in tokens.
        """
        tokens = sum(lengths)
        matrices = self.layers * self.layer_matrices + self.embedding_params
        return 2 * matrices * tokens + 2 * self.layers * self.queries * sum(length**2 for length in lengths)

    def vision_operations(self, patches: float, grid: float) -> float:
        """Floating-point operations of a forward pass of the vision tower.

        Args:
            patches: of all media.
            grid: patches in one temporal grid, which attend to each other.
        """
        v = self.vision
        windows = v.depth - v.full if v.window else 0
        attended = windows * min(v.window, grid) + (v.depth - windows) * grid
        matrices = v.patch * v.width + v.depth * self.block_matrices
        mergers = (1 + v.deepstack) * self.merger_matrices / v.merge
        return patches * (2 * (matrices + mergers) + 4 * v.width * attended)

    def kv_bytes(self, width: int = 2) -> int:
        """Bytes of the key-value cache for one token.

        Args:
            width: bytes of a number.
        """
        return 2 * self.layers * self.keys * width


def find_shape(path: str) -> tuple[ModelShape, VisionSpec | None, str]:
    """The shape of a model: from its folder if there is one, else from the package's table by the path's last part.

    Args:
        path: a folder, or a published name such as `Qwen/Qwen2.5-VL-7B-Instruct` (`-Instruct` may lack).

    Returns:
        The shape; what the published processor does with media, None for a folder, whose own processor says it; and
        where the shape comes from.

    Raises:
        ValueError: neither.
    """
    file = Path(path).expanduser() / "config.json"
    try:
        return ModelShape.from_config(json.loads(file.read_text("utf-8"))), None, str(file)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error
    except OSError:  # no folder, or one that may not be entered: then it is a published name, if anything
        pass
    name = re.sub("-(Instruct|Thinking)$", "", path.rstrip("/").rsplit("/", 1)[-1])
    models = _table()["models"]
    if name not in models:
        raise ValueError(f"{path} is no folder with a config.json, nor one of {', '.join(models)}")
    shape = ModelShape.from_config(models[name])
    vision = models[name]["vision_config"]
    family = _table()["families"][shape.kind]
    spec = VisionSpec(
        kind=shape.kind,
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        merge_size=vision["spatial_merge_size"],
        image_pixels=tuple(family["image_pixels"]),
        video_pixels=tuple(family["video_pixels"]),
    )
    return shape, spec, f"{TABLE.name}: {name}"


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text("utf-8"))


def _check_sizes(config: Mapping[str, Any], where: str) -> None:
    for name in SIZES:
        value = config.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            shown = "null" if value is None else repr(value)
            raise ValueError(f"its config has {where}{name}={shown}: a whole number of at least 1 is needed")


def _vision(kind: str, config: Mapping[str, Any]) -> Vision:
    old = kind == "qwen2_vl"  # whose hidden_size is the language model's
    patch, width = config["patch_size"], config["embed_dim" if old else "hidden_size"]
    window = config.get("window_size", 112) if kind == "qwen2_5_vl" else 0
    return Vision(
        depth=config["depth"],
        width=width,
        inner=int(width * config.get("mlp_ratio", 4)) if old else config["intermediate_size"],
        out=config["hidden_size" if old else "out_hidden_size"],
        patch=config.get("in_channels", 3) * config["temporal_patch_size"] * patch**2,
        merge=config["spatial_merge_size"] ** 2,
        window=(window // patch) ** 2,
        full=len(config.get("fullatt_block_indexes", ())) if kind == "qwen2_5_vl" else 0,
        positions=config.get("num_position_embeddings", 2304) if kind == "qwen3_vl" else 0,
        deepstack=len(config.get("deepstack_visual_indexes", ())) if kind == "qwen3_vl" else 0,
    )
