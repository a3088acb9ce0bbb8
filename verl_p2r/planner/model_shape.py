# SPDX-License-Identifier: Apache-2.0
"""The size of a video language model, computed from its config.json: parameters, operations, key-value cache."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from verl_p2r.media.families import Family, family_of_model, known_families
from verl_p2r.media.vision_spec import VisionSpec
from verl_p2r.planner.linear_attention import LinearAttention

TABLE = Path(__file__).with_name("model_shapes.yaml")
SIZES = (  # fields of a config.json that enter the arithmetic, in the text part or the vision part
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "depth", "embed_dim", "out_hidden_size", "in_channels"),
    *("patch_size", "temporal_patch_size", "spatial_merge_size", "num_position_embeddings"),
    *("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim"),
)


@dataclass(frozen=True)
class Vision:
    """Sizes of the vision tower, merger included.

    Args:
        depth: number of blocks.
        width: width of a block.
        inner: width inside a block's MLP.
        out: width of what the language model gets.
        patch: values in a patch: channels x frames x height x width.
        merge: patches merged into one token.
        window: patches that attend to each other in the blocks with windows; 0 without windows.
        full: blocks whose patches attend to all of their temporal grid.
        positions: learned position embeddings.
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
    """Sizes of a model, as its config.json gives them; the properties derive counts from them.

    Args:
        family: family of the model.
        hidden: width of the language model.
        inner: width inside its MLPs.
        layers: number of its layers.
        heads: query heads of a layer.
        kv_heads: key and value heads of a layer.
        head_dim: width of a head.
        vocab: rows of the embedding.
        context: longest sequence, in tokens.
        tied: the output layer is the input embedding.
        vision: sizes of the vision tower.
        linear: sizes of the linear attention of a hybrid family; None for others.
    """

    family: Family
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
    linear: LinearAttention | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a config.json; older ones have the text fields at the top.

        Args:
            config: its content.

        Raises:
            ValueError: the family is unknown, or a field is missing or is not a size.
        """
        family = family_of_model(config.get("model_type"))
        if family is None:
            raise ValueError(
                f"model_type is {config.get('model_type')!r}, which cannot be planned: known are {known_families()}"
            )
        text, vision = config.get("text_config") or config, config.get("vision_config") or {}
        try:
            _check_sizes(text, "")
            _check_sizes(vision, "vision_config.")
            return cls(
                family=family,
                hidden=text["hidden_size"],
                inner=text["intermediate_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                kv_heads=text["num_key_value_heads"],
                head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
                vocab=text["vocab_size"],
                context=text["max_position_embeddings"],
                tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
                vision=_vision(family, vision),
                linear=LinearAttention.from_config(text) if family.hybrid else None,
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
    def full_layers(self) -> int:
        """Number of decoder layers with full attention."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def layer_matrices(self) -> int:
        """Parameters in the weight matrices of a decoder layer with full attention."""
        gate = self.queries if self.family.hybrid else 0
        return self.hidden * (2 * self.queries + gate + 2 * self.keys + 3 * self.inner)

    @property
    def layer_params(self) -> int:
        """Parameters of a layer with full attention: matrices, norms, and biases or norms of queries and keys."""
        small = 2 * self.head_dim if self.family.head_norms else self.queries + 2 * self.keys
        return self.layer_matrices + 2 * self.hidden + small

    @property
    def all_layer_matrices(self) -> int:
        """Parameters in the weight matrices of all decoder layers."""
        linear = self.linear
        hybrid = linear.layers * (linear.matrices + 3 * self.hidden * self.inner) if linear else 0
        return self.full_layers * self.layer_matrices + hybrid

    @property
    def all_layer_params(self) -> int:
        """Parameters of all decoder layers."""
        linear = self.linear
        hybrid = linear.layers * (linear.params + 3 * self.hidden * self.inner + 2 * self.hidden) if linear else 0
        return self.full_layers * self.layer_params + hybrid

    @property
    def embedding_params(self) -> int:
        """Parameters of the input embedding; an output layer that is not tied has as many."""
        return self.vocab * self.hidden

    @property
    def block_matrices(self) -> int:
        """Parameters in the weight matrices of a vision block."""
        v = self.vision
        return 4 * v.width**2 + (3 if self.family.tower.gated else 2) * v.width * v.inner

    @property
    def block_params(self) -> int:
        """Parameters of a vision block: matrices, biases and two norms."""
        v = self.vision
        biases = 4 * v.width + v.width + (2 if self.family.tower.gated else 1) * v.inner
        return self.block_matrices + biases + 2 * self._vision_norm

    @property
    def _vision_norm(self) -> int:
        return self.vision.width if self.family.tower.rms_norm else 2 * self.vision.width

    @property
    def vision_params(self) -> int:
        """Parameters of the vision tower, its mergers included."""
        v, wide = self.vision, self.vision.width * self.vision.merge
        entry = (v.patch + self.family.tower.patch_bias + v.positions) * v.width
        merger = self.merger_matrices + wide + v.out
        mergers = merger + self._vision_norm + v.deepstack * (merger + 2 * wide)
        return entry + v.depth * self.block_params + mergers

    @property
    def merger_matrices(self) -> int:
        """Parameters in the weight matrices of a merger."""
        wide = self.vision.width * self.vision.merge
        return wide * (wide + self.vision.out)

    @property
    def params(self) -> int:
        """All parameters; tied ones count once."""
        outside = (1 if self.tied else 2) * self.embedding_params + self.hidden
        return outside + self.all_layer_params + self.vision_params

    @property
    def root_params(self) -> int:
        """Parameters outside the layers and blocks that FSDP wraps; they stay gathered for a whole pass."""
        return self.params - self.all_layer_params - self.vision.depth * self.block_params

    def lora_params(self, rank: int, vision: bool) -> int:
        """Parameters of adapters on all linear layers except the output layer (peft's `all-linear`).

        Args:
            rank: rank of the adapters.
            vision: whether the vision tower has adapters as well.
        """
        attention = 4 * self.hidden + (3 if self.family.hybrid else 2) * self.queries + 2 * self.keys
        total = self.full_layers * attention + self.layers * 3 * (self.hidden + self.inner)
        if self.linear:
            total += self.linear.layers * self.linear.adapter_widths
        if vision:
            v, wide = self.vision, self.vision.width * self.vision.merge
            mlp = (3 if self.family.tower.gated else 2) * (v.width + v.inner)
            total += v.depth * (6 * v.width + mlp) + (1 + v.deepstack) * (3 * wide + v.out)
        return rank * total

    def text_operations(self, lengths: list[float]) -> float:
        """Floating-point operations of a forward pass of the language model, causal attention and logits included.

        Args:
            lengths: lengths of the sequences, in tokens.
        """
        tokens = sum(lengths)
        pairs = 2 * self.full_layers * self.queries * sum(length**2 for length in lengths)
        linear = self.linear.layers * self.linear.token_operations * tokens if self.linear else 0
        return 2 * (self.all_layer_matrices + self.embedding_params) * tokens + pairs + linear

    def vision_operations(self, patches: float, grid: float) -> float:
        """Floating-point operations of a forward pass of the vision tower.

        Args:
            patches: patches of all media.
            grid: patches in one temporal grid, which attend to each other.
        """
        v = self.vision
        windows = v.depth - v.full if v.window else 0
        attended = windows * min(v.window, grid) + (v.depth - windows) * grid
        matrices = v.patch * v.width + v.depth * self.block_matrices
        mergers = (1 + v.deepstack) * self.merger_matrices / v.merge
        return patches * (2 * (matrices + mergers) + 4 * v.width * attended)

    def kv_bytes(self, width: int = 2) -> int:
        """Bytes of the key-value cache for one token; linear attention keeps a state of fixed size instead.

        Args:
            width: bytes of a number.
        """
        return 2 * self.full_layers * self.keys * width


def find_shape(path: str) -> tuple[ModelShape, VisionSpec | None, str]:
    """Find the shape of a model: in its folder if there is one, else in the package's table of published models.

    Args:
        path: a folder, or a published name such as `Qwen/Qwen2.5-VL-7B-Instruct`; `-Instruct` is optional.

    Returns:
        The shape; the settings of the published processor (None for a folder, which has its own processor); and
        where the shape comes from.

    Raises:
        ValueError: the path is neither, or the config cannot be planned.
    """
    file = Path(path).expanduser() / "config.json"
    try:
        return ModelShape.from_config(json.loads(file.read_text("utf-8"))), None, str(file)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error
    except OSError:  # no readable folder: try it as a published name
        pass
    name = re.sub("-(Instruct|Thinking)$", "", path.rstrip("/").rsplit("/", 1)[-1])
    models = _table()["models"]
    if name not in models:
        raise ValueError(f"{path} is neither a folder with a config.json nor one of {', '.join(models)}")
    shape = ModelShape.from_config(models[name])
    vision = models[name]["vision_config"]
    spec = VisionSpec(
        family=shape.family,
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        merge_size=vision["spatial_merge_size"],
        image_pixels=shape.family.image_pixels,
        video_pixels=shape.family.video_pixels,
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
            raise ValueError(f"its config has {where}{name}={shown}: it must be a whole number of at least 1")


def _vision(family: Family, config: Mapping[str, Any]) -> Vision:
    tower = family.tower
    patch, width = config["patch_size"], config[tower.width_field]
    return Vision(
        depth=config["depth"],
        width=width,
        inner=int(width * config.get("mlp_ratio", tower.mlp_ratio)) if tower.mlp_ratio else config["intermediate_size"],
        out=config[tower.out_field],
        patch=config.get("in_channels", 3) * config["temporal_patch_size"] * patch**2,
        merge=config["spatial_merge_size"] ** 2,
        window=(config.get("window_size", tower.window) // patch) ** 2,
        full=len(config.get("fullatt_block_indexes", ())),
        positions=config.get("num_position_embeddings", tower.positions),
        deepstack=len(config.get("deepstack_visual_indexes", ())),
    )
