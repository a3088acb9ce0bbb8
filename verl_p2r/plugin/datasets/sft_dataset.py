# SPDX-License-Identifier: Apache-2.0
"""SFT rows with video at its true times, screened before the run. Set it as `data.custom_cls`.

verl's dataset loads a video without its metadata, so that the Hugging Face processor assumes 24 fps; it tokenizes each
message separately, and calls the processor twice. Here one call makes the prompt exactly as the agent loop does in RL,
the response is tokenized after it, and the loss covers the response only.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.py_functional import convert_nested_value_to_list_recursive
from verl.utils.tokenizer import build_multimodal_processor_inputs
from verl.utils.tokenizer.chat_template import extract_system_prompt_and_generation

from verl_p2r.data.columns import SFT_SCHEMA, sft_columns, to_table
from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import messages_in
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.rejects import Screening, keep_or_raise, key_of, load_or_screen
from verl_p2r.data.screening import Limit, Sample, check_modalities, columns_at_fault, media_in, screen
from verl_p2r.data.settings import DataSettings
from verl_p2r.data.tables import load, rows_of
from verl_p2r.media.decode import install_reader
from verl_p2r.media.families import family_of_processor
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.plan import VisionSpec
from verl_p2r.plugin.datasets.first_rank import of_first_rank
from verl_p2r.plugin.datasets.special_tokens import SpecialTokens
from verl_p2r.plugin.media.media_cache import CacheSettings, cache_settings, sources_in
from verl_p2r.plugin.media.position_ids import qwen_position_ids
from verl_p2r.settings import merge
from verl_p2r.template import parse_response, perception_end

install_reader()


@dataclass(frozen=True)
class SFTSettings:
    """The settings in `data.p2r` for SFT, in addition to `DataSettings`.

    Args:
        process_aware: False removes the observation from every response: the paper's process-agnostic SFT, with the
            same rows and prompts [ours].
    """

    process_aware: bool = True


class P2RSFTDataset(MultiTurnSFTDataset):
    """Reads rows of `messages`, which end with the assistant's response, with columns of `videos` and `images`.

    It needs `data.pad_mode=no_padding`. Rows that cannot work (over-long, missing or unreadable media, wrong columns)
    are rejected before the run and counted by reason. Media of validation rows are sampled and sized as in training, so
    that the two losses can be compared [ours].

    Rows for families that `verl_p2r/media/families.py` does not list, and for text models, are read and screened in the
    same way, except that their length is not measured. verl's own code tokenizes them.

    Raises:
        ValueError: more rows than `data.p2r.max_reject_share` are rejected; or a row that passed the screening cannot
            be read, in which case the message names file and row.
    """

    processor: Any
    dataframe: Any  # of `datasets`; of pandas where verl's own code tokenizes

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
        try:
            return self._encode(*self._split(self._columns(item))) if self._ours else super().__getitem__(item)
        except (ValueError, TypeError, OSError) as error:
            file, row = self._place(item)
            raise ValueError(f"{file} row {row}: {error}") from error

    def __len__(self) -> int:
        return len(self.dataframe)

    @property
    def _ours(self) -> bool:
        return family_of_processor(self.processor) is not None

    def _build_messages(self, example: dict) -> list[dict]:
        """Build the messages that verl's own code tokenizes, with decoded media in place."""
        messages = self._turns(example)
        images, videos = self._decode(messages)
        media = {"image": iter(images), "video": iter([frames for frames, _ in videos])}
        for message in messages:
            content = message["content"]
            if isinstance(content, list):
                message["content"] = [
                    {"type": part["type"], part["type"]: next(media[part["type"]])} if part["type"] in media else part
                    for part in content
                ]
            elif content is not None and self.processor is not None:
                message["content"] = [{"type": "text", "text": content}]
        return messages

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
            "multi_modal_inputs": inputs,  # {} for text, because verl's collator takes the keys of the first row
        }

    def _decode(self, prompt: list[dict]) -> tuple[list, list]:
        """Decode the prompt's images, and its videos with their metadata, as the agent loop does."""
        sources = sources_in(prompt, self.image_patch_size)
        if sources is None:
            raise ValueError("its messages hold media that are neither images nor videos: drop the row")
        media = [(source.kind, source.decode(_frame_cache(self.media_cache))) for source in sources]
        return [m for kind, m in media if kind == "image"], [m for kind, m in media if kind == "video"]

    def _read_files_and_process(self):
        """Read all rows as verl does, draw `max_samples` of them, and keep those that work."""
        if self.pad_mode != "no_padding":
            raise ValueError(f"data.pad_mode is {self.pad_mode!r}: P2RSFTDataset makes unpadded rows: set no_padding")
        table, self._origins = load(list(map(str, self.parquet_files)), self._table_of_records, self._shapeless)
        self.dataframe = datasets.Dataset(table, fingerprint=key_of(self.parquet_files))
        self._rows: Sequence[int] = range(len(table))  # row of each position in the table
        if self._ours:
            ending = self._ending()
            self._special, self._end = SpecialTokens.of(self.tokenizer, ending), ending.rstrip()
        wanted = self.max_samples
        self._keep(of_first_rank(lambda: self._draw(wanted)))
        kept = keep_or_raise(
            of_first_rank(self._screen),
            max_share=self.settings.max_reject_share,
            setting="data.p2r.max_reject_share",
            listing=self.settings.listing(f"sft_{self.split}"),
        )
        self._keep(kept)
        if not self._ours:
            self._set_what_verl_reads()

    def _set_what_verl_reads(self) -> None:
        """Set the attributes of verl's class that its tokenization reads."""
        self.dataframe = self.dataframe.to_pandas()
        self.tools, self.enable_thinking = (
            self.dataframe[key].apply(convert_nested_value_to_list_recursive).tolist()
            if key in self.dataframe
            else None
            for key in (self.tools_key, self.enable_thinking_key)
        )
        self.system_prompt, self.generation_prompt = extract_system_prompt_and_generation(
            self.tokenizer, **self.apply_chat_template_kwargs
        )

    def _table_of_records(self, values: list[Any]) -> tuple[Any, dict[int, RowError]]:
        template = PromptTemplate.load(self.settings.prompt_template)
        table, errors = to_table(values, template, make_row=sft_columns, schema=SFT_SCHEMA)
        return table.rename_columns([self.messages_key, *table.schema.names[1:]]), errors

    @property
    def _shapeless(self) -> tuple[str, ...]:
        """The columns whose values may differ in shape from row to row."""
        return self.messages_key, self.image_key, self.video_key

    def _ending(self) -> str:
        """Return what the chat template writes after a response."""
        turns = [{"role": "user", "content": "7 <b>?"}, {"role": "assistant", "content": "7 <b>."}]
        return self._text(turns).rpartition("7 <b>.")[2]

    def _draw(self, wanted: int) -> Sequence[int]:
        """Return the rows that verl's `max_samples` draws."""
        total = len(self.dataframe)
        if not 0 < wanted < total:
            return range(total)
        if not self.shuffle:
            return range(wanted)
        return np.random.default_rng(self.seed).choice(total, size=wanted, replace=False).tolist()

    def _keep(self, positions: Sequence[int]) -> None:
        self._rows = [self._rows[i] for i in positions]
        if len(positions) < len(self.dataframe) or list(positions) != list(range(len(positions))):
            self.dataframe = self.dataframe.select(positions)

    def _screen(self) -> Screening:
        spec = VisionSpec.from_processor(self.processor, self.mm_processor_kwargs)
        limit = Limit(self.max_length, "data.max_length", self.tokenizer, spec)
        probe = self._text([{"role": "user", "content": "7 <b>?"}], add_generation_prompt=True) if self._ours else ""
        key = key_of(
            self.parquet_files,
            self._rows,
            (self.messages_key, self.image_key, self.video_key, self.max_length, self.process_aware),
            (
                self.settings.sources,
                PromptTemplate.load(self.settings.prompt_template),
                self.media,
                spec,
                dict(self.apply_chat_template_kwargs),
            ),
            (self.processor is None, getattr(self.processor, "chat_template", None), self.tokenizer.chat_template),
            (len(self.tokenizer), self.tokenizer(probe)["input_ids"]),  # tokenizers that agree on it count as equal
        )
        unusable = self._origins.unusable
        rows = (unusable.get(number, row) for number, row in zip(self._rows, rows_of(self.dataframe), strict=True))
        return load_or_screen(
            self.settings.cache_folder,
            key,
            lambda: screen(rows, lambda _, row: self._sample(row), self._place, limit, total=len(self)),
        )

    def _columns(self, item: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataframe[item]
        return row

    def _place(self, item: int) -> tuple[str, int]:
        return self._origins.place(self._rows[item])

    def _sample(self, row: dict[str, Any]) -> Sample:
        """Make the sample of a row for the screening.

        Raises:
            RowError: its columns are wrong.
        """
        fields = {"image": self.image_key, "video": self.video_key}
        with columns_at_fault(self.messages_key):
            if self._ours:
                prompt, text, response = self._split(row)
                return Sample(text + response, media_in(prompt, fields))
            media = media_in(self._turns(row), fields)
        if media and self.processor is None:
            raise RowError(
                media[0].field,
                "no processor",
                f"field {media[0].field} holds media, and the model has no processor for them: drop them, or train a "
                "vision language model",
            )
        return Sample("", media)

    def _turns(self, row: dict[str, Any]) -> list[dict]:
        """Return the messages of a row that verl's own code tokenizes.

        Raises:
            RowError: there is nothing to learn in them, or they hold other media than images and videos.
        """
        messages = self._prompt(row)
        check_modalities(messages, self.messages_key)
        if "assistant" not in (roles := [message["role"] for message in messages]):
            raise RowError(
                self.messages_key,
                "roles",
                f"field {self.messages_key} has roles {roles}: it needs an assistant message, which is learned",
            )
        return messages

    def _split(self, row: dict[str, Any]) -> tuple[list[dict], str, str]:
        """Return the prompt's messages with media in place, its text, and the response with its end token."""
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
        # The template does not render the response: Qwen3.5's takes a response apart at `</think>`, and loses what is
        # before `<think>`. A sampled response is not rendered either.
        return prompt, text, self._response(messages[-1]["content"]) + self._end

    def _prompt(self, row: dict[str, Any]) -> list[dict]:
        """Build the messages before the response with media in place, as RL does."""
        fields = {"image": self.image_key, "video": self.video_key}
        return self.settings.messages(row, self.messages_key, fields, self.media)

    def _response(self, content: Any) -> str:
        """Return the text of a response that is trained on.

        It is stripped, like a sampled one, has no end tokens of the chat template, and has no observation if SFT is
        process-agnostic.
        """
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

    def _text(self, messages: list[dict], **kwargs: Any) -> str:
        return self.processor.apply_chat_template(
            messages, tokenize=False, **{**self.apply_chat_template_kwargs, **kwargs}
        )


def _unbound(processor: Any) -> Any:
    """Copy a processor without the methods that verl binds to it, which cannot be pickled for a data loader."""
    if family_of_processor(processor) is None:
        return processor
    processor = copy(processor)
    for name in ("get_rope_index", "get_vision_position_ids"):
        vars(processor).pop(name, None)
    return processor


@lru_cache(maxsize=1)
def _frame_cache(settings: CacheSettings) -> FrameCache | None:
    """Return the frame cache of this process; each worker of the data loader has its own."""
    return settings.open_disk()
