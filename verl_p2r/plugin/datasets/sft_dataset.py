# SPDX-License-Identifier: Apache-2.0
"""SFT rows with video placed right in time, screened before the run; named by `data.custom_cls`.

verl's dataset loads a video without its metadata, so that the Hugging Face processor assumes 24 fps, tokenizes each
message apart, and calls the processor twice. Here one call makes the prompt exactly as the agent loop makes it in RL,
the response is tokenized behind it, and the loss lies on the response alone.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.data.columns import SFT_SCHEMA, sft_columns_of, to_table
from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import build_messages, media_list, messages_in
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.rejects import Screening, admit, key_of, remembered
from verl_p2r.data.screening import Limit, Sample, check_modalities, columns_at_fault, media_in, screen
from verl_p2r.data.settings import DataSettings
from verl_p2r.data.tables import joined, read_table, rows_of
from verl_p2r.media.decode import install_reader
from verl_p2r.media.families import family_of_processor
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.plan import VisionSpec
from verl_p2r.plugin.datasets.special_tokens import SpecialTokens
from verl_p2r.plugin.media.media_cache import GIB, CacheSettings, cache_settings, sources_in
from verl_p2r.plugin.media.position_ids import qwen_position_ids
from verl_p2r.settings import merge
from verl_p2r.template import parse_response, perception_end

install_reader()

T = TypeVar("T")


@dataclass(frozen=True)
class SFTSettings:
    """What `data.p2r` holds for SFT beside `DataSettings`.

    Args:
        process_aware: False leaves the observation out of every response: the paper's process-agnostic SFT, on the
            same rows and prompts [ours].
    """

    process_aware: bool = True


class P2RSFTDataset(MultiTurnSFTDataset):
    """Rows of `messages` that end with the assistant's response, with `videos` and `images` beside them.

    For Qwen2-VL, Qwen2.5-VL and Qwen3-VL; other families take verl's own path. Needs `data.pad_mode=no_padding`. Rows
    that cannot work (over-long, missing or unreadable media, wrong columns) are left out before the run, counted by
    reason. Validation rows are sampled and sized as training rows are, so that the two losses compare [ours].

    Raises:
        ValueError: more rows than `data.p2r.max_reject_share` are rejected; or, naming file and row, a row that passed
            the screening cannot be read after all.
    """

    def __init__(self, parquet_files, tokenizer, config, processor=None, max_samples: int = -1):
        node = config.get("p2r")
        self.settings = DataSettings.from_mapping(node or {})
        self.process_aware = merge(
            SFTSettings(), {k: v for k, v in (node or {}).items() if k == "process_aware"}, "data.p2r"
        ).process_aware
        self.media = None if node is None else self.settings.media.train
        self.media_cache = cache_settings(config)
        self.mm_processor_kwargs = dict(config.get("mm_processor_kwargs") or {})
        self.split = "val" if parquet_files == config.get("val_files") != config.get("train_files") else "train"
        super().__init__(parquet_files, tokenizer, config, _unbound(processor), max_samples)

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not self._ours:
            return super().__getitem__(item)
        try:
            return self._encode(*self._split(self._columns(item)))
        except (ValueError, TypeError, OSError) as error:
            file, row = self._place(item)
            raise ValueError(f"{file} row {row}: {error}") from error

    def __len__(self) -> int:
        return len(self.dataframe)

    @property
    def _ours(self) -> bool:
        return family_of_processor(self.processor) is not None

    def _build_messages(self, example: dict) -> list[dict]:
        """verl's, on the path of other families, without the media and their fields that are None."""
        media = {key: media_list(example[key]) for key in (self.image_key, self.video_key) if key in example}
        media = {key: [_set_fields(medium) for medium in value] for key, value in media.items()}
        return super()._build_messages({**example, **media})

    def _encode(self, prompt: list[dict], text: str, response: str) -> dict[str, Any]:
        images, videos = self._decode(prompt)
        inputs = dict(
            build_multimodal_processor_inputs(
                self.processor,
                text=[text],
                images=images or None,
                videos=videos or None,
                mm_processor_kwargs=self.mm_processor_kwargs,
            ).convert_to_tensors("pt")
        )
        prompt_ids = inputs.pop("input_ids")[0]
        for name in ("attention_mask", "mm_token_type_ids"):
            inputs.pop(name, None)
        response_ids = torch.tensor(self.tokenizer(response, add_special_tokens=False)["input_ids"])
        input_ids = torch.cat([prompt_ids, response_ids])
        if len(input_ids) > self.max_length:
            raise ValueError(f"{len(input_ids)} tokens are more than data.max_length={self.max_length}: raise it")
        return {
            "input_ids": input_ids,
            "position_ids": qwen_position_ids(self.processor, input_ids, inputs),
            "loss_mask": torch.cat([torch.zeros_like(prompt_ids), torch.ones_like(response_ids)]),
            "multi_modal_inputs": inputs,  # {} for text: verl's collator asks the first row what there is
        }

    def _decode(self, prompt: list[dict]) -> tuple[list | None, list | None]:
        """The prompt's images, and its videos with their metadata, as the agent loop has them."""
        sources = sources_in(prompt, self.image_patch_size)
        if sources is None:
            raise ValueError("its messages hold media that are neither images nor videos: drop the row")
        media = [(source.kind, source.decode(_disk(self.media_cache))) for source in sources]
        return [m for kind, m in media if kind == "image"], [m for kind, m in media if kind == "video"]

    def _read_files_and_process(self):
        """verl's reading, of all rows; then the draw of `max_samples`, and of these the rows that work."""
        if self.pad_mode != "no_padding":
            raise ValueError(f"data.pad_mode is {self.pad_mode!r}: P2RSFTDataset makes unpadded rows, set no_padding")
        if not self._ours:
            return super()._read_files_and_process()
        tables: list[Any] = []
        self._unusable: dict[int, RowError] = {}
        for file in self.parquet_files:
            table, errors = self._read(str(file))
            offset = sum(map(len, tables))
            self._unusable |= {offset + row: error for row, error in errors.items()}
            tables.append(table)
        self._ends = list(accumulate(map(len, tables)))
        self.dataframe = datasets.Dataset(
            joined(tables, self.parquet_files, self._shapeless), fingerprint=key_of(self.parquet_files)
        )
        self._origins: Sequence[int] = range(self._ends[-1])  # of the rows, counted through all files
        self._special = SpecialTokens.of(self.tokenizer, self._ending())
        wanted = self.max_samples
        self._keep(_of_first_rank(lambda: self._draw(wanted)))
        kept = admit(
            _of_first_rank(self._screen),
            max_share=self.settings.max_reject_share,
            setting="data.p2r.max_reject_share",
            listing=self.settings.listing(f"sft_{self.split}"),
        )
        self._keep(kept)

    def _read(self, file: str) -> tuple[Any, dict[int, RowError]]:
        def of_records(records: list[Any]) -> tuple[Any, dict[int, RowError]]:
            template = PromptTemplate.load(self.settings.prompt_template)
            table, errors = to_table(records, template, make=sft_columns_of, schema=SFT_SCHEMA)
            return table.rename_columns([self.messages_key, *table.schema.names[1:]]), errors

        return read_table(file, of_records, self._shapeless)

    @property
    def _shapeless(self) -> tuple[str, ...]:
        """The columns whose values may differ in shape from row to row."""
        return self.messages_key, self.image_key, self.video_key

    def _ending(self) -> str:
        """What the chat template writes behind a response."""
        turns = [{"role": "user", "content": "7 <b>?"}, {"role": "assistant", "content": "7 <b>."}]
        return self._text(turns).rpartition("7 <b>.")[2]

    def _draw(self, wanted: int) -> Sequence[int]:
        """The rows that verl's `max_samples` takes."""
        total = len(self.dataframe)
        if not 0 < wanted < total:
            return range(total)
        if not self.shuffle:
            return range(wanted)
        return np.random.default_rng(self.seed).choice(total, size=wanted, replace=False).tolist()

    def _keep(self, positions: Sequence[int]) -> None:
        self._origins = [self._origins[i] for i in positions]
        if len(positions) < len(self.dataframe) or list(positions) != list(range(len(positions))):
            self.dataframe = self.dataframe.select(positions)

    def _screen(self) -> Screening:
        spec = VisionSpec.from_processor(self.processor, self.mm_processor_kwargs)
        limit = Limit(self.max_length, "data.max_length", self.tokenizer, spec)
        probe = self._text([{"role": "user", "content": "7 <b>?"}], add_generation_prompt=True)
        key = key_of(
            self.parquet_files,
            self._origins,
            (self.messages_key, self.image_key, self.video_key, self.max_length, self.process_aware),
            (
                self.settings.sources,
                self.settings.prompt_template,
                self.media,
                spec,
                dict(self.apply_chat_template_kwargs),
            ),
            (self.processor.chat_template, self.tokenizer.chat_template),
            (len(self.tokenizer), self.tokenizer(probe)["input_ids"]),  # two tokenizers that agree on it are one
        )
        rows = (
            self._unusable.get(origin, row) for origin, row in zip(self._origins, rows_of(self.dataframe), strict=True)
        )
        return remembered(
            self.settings.cache_folder,
            key,
            lambda: screen(rows, lambda _, row: self._sample(row), self._place, limit, total=len(self)),
        )

    def _columns(self, item: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataframe[item]
        return row

    def _place(self, item: int) -> tuple[str, int]:
        """What names a row in messages: its file, and its row there."""
        origin = self._origins[item]
        file = bisect_right(self._ends, origin)
        return str(self.parquet_files[file]), origin - (self._ends[file - 1] if file else 0)

    def _sample(self, row: dict[str, Any]) -> Sample:
        """A row as screening sees it.

        Raises:
            RowError: its columns are wrong.
        """
        with columns_at_fault(self.messages_key):
            prompt, text, response = self._split(row)
        return Sample(text + response, media_in(prompt, {"image": self.image_key, "video": self.video_key}))

    def _split(self, row: dict[str, Any]) -> tuple[list[dict], str, str]:
        """The prompt's messages with media in place, its text, and the response's up to and with its end token."""
        messages = messages_in(row.get(self.messages_key), self.messages_key)
        roles = [message["role"] for message in messages]
        if "assistant" not in roles or roles.index("assistant") != len(roles) - 1:
            raise RowError(
                self.messages_key,
                "roles",
                f"field {self.messages_key} has roles {roles}: it must end with its only assistant message",
            )
        prompt = self._prompt({**row, self.messages_key: messages[:-1]})
        check_modalities(prompt, self.messages_key)
        text = self._text(prompt, add_generation_prompt=True)
        whole = self._text([*prompt, {"role": "assistant", "content": self._response(messages[-1]["content"])}])
        if not whole.startswith(text):
            raise RowError(
                self.messages_key,
                "chat template",
                "the chat template changes the prompt when a response follows: it cannot be trained on",
            )
        return prompt, text, whole[len(text) :].rstrip()

    def _prompt(self, row: dict[str, Any]) -> list[dict]:
        """The messages before the response with media in place, made as in RL."""
        fields = {"image": self.image_key, "video": self.video_key}

        def read(medium: Any, kind: str) -> dict[str, Any]:
            return self.settings.element(medium, self.media, kind, fields[kind])

        return build_messages(row, self.messages_key, fields, read)

    def _response(self, content: Any) -> str:
        """What is learnt of a response: it begins with a word, as a sampled one does; without its observation if so
        set, without the end tokens that the chat template writes itself, the rest as it was written."""
        if isinstance(content, list):
            [turn] = self._prompt({self.messages_key: [{"role": "assistant", "content": content}]})
            check_modalities([turn], self.messages_key, known=("text",))
            content = "".join(part["text"] for part in turn["content"])
        content = self._special.stripped(content or "", self.messages_key)
        if not self.process_aware and parse_response(content).observation is not None:
            content = content[perception_end(content) :]
        if not content.strip():
            raise RowError(
                self.messages_key, "no response", f"field {self.messages_key} holds nothing to learn: drop the row"
            )
        return content.strip()

    def _text(self, messages: list[dict], **kwargs) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, **{**self.apply_chat_template_kwargs, **kwargs}
        )


def _set_fields(medium: Any) -> Any:
    """A medium without its fields that are None: parquet gives each medium the fields of all."""
    return {k: v for k, v in medium.items() if v is not None} if isinstance(medium, dict) else medium


def _unbound(processor: Any) -> Any:
    """A processor without the methods that verl binds to it: with them no data loader can send it to a new process."""
    if family_of_processor(processor) is None:
        return processor
    processor = copy(processor)
    for name in ("get_rope_index", "get_vision_position_ids"):
        vars(processor).pop(name, None)
    return processor


@lru_cache(maxsize=1)
def _disk(settings: CacheSettings) -> FrameCache | None:
    """The frame cache of this process: a worker of the data loader makes its own."""
    return FrameCache(settings.directory, int(settings.disk_gib * GIB)) if settings.directory else None


def _of_first_rank(make: Callable[[], T]) -> T:
    """What the first rank makes, on all ranks: files are probed once, and all ranks see the same rows."""
    if not torch.distributed.is_initialized():
        return make()
    made = [make() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]
