# SPDX-License-Identifier: Apache-2.0
"""verl's RL dataset with records in, and its rows screened before the run; named by `data.custom_cls`.

Without the screening a bad row fails inside an agent loop in the middle of training, where verl logs the error and goes
on without the prompt; or verl's filter of over-long prompts drops it without a word, after decoding every video.
"""

import asyncio
from bisect import bisect_right
from itertools import accumulate
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.chat_template import apply_chat_template

from verl_p2r.data.columns import to_table
from verl_p2r.data.errors import RowError
from verl_p2r.data.messages import build_messages
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.rejects import Screening, admit, key_of, remembered
from verl_p2r.data.rows import Row
from verl_p2r.data.screening import Limit, Sample, check_modalities, columns_at_fault, media_in, screen
from verl_p2r.data.settings import DataSettings
from verl_p2r.data.tables import joined, read_table, rows_of
from verl_p2r.data.truths import check_truth
from verl_p2r.media.plan import MediaSettings, VisionSpec
from verl_p2r.plugin.media.media_cache import cache_of, sources_in


class P2RDataset(RLHFDataset):
    """Rows of verl's parquet or JSON, or records of Video-R1 and VideoP2R; those that cannot work are left out.

    Beside verl's columns rows hold `problem_type` (or `extra_info.problem_type`). The settings are the node `data.p2r`
    (`DataSettings`); without it media keep the fields they have, and a single bad row of a hundred ends the run. A data
    set is validation when its files are `data.val_files` and not `data.train_files` too.

    Raises:
        ValueError: more rows than `data.p2r.max_reject_share` are rejected: counts by reason, the first rows by file,
            row and field, and the file that lists all.
    """

    settings = DataSettings()
    media: MediaSettings | None = None

    def __init__(self, data_files, tokenizer, config, processor=None, max_samples: int = -1):
        files = {name: _listed(config.get(f"{name}_files")) for name in ("train", "val")}
        self.role = "val" if _listed(data_files) == files["val"] != files["train"] else "train"
        if config.get("p2r") is not None:
            self.settings = DataSettings.from_mapping(config.p2r)
            self.media = getattr(self.settings.media, self.role)
        super().__init__(data_files, tokenizer, config, processor, max_samples)

    def maybe_filter_out_long_prompts(self, dataframe: datasets.Dataset) -> datasets.Dataset:
        """Leave out the rows that cannot work; then verl's own filter, which our configuration leaves off."""
        screening = remembered(self.settings.cache_folder, self._key(), lambda: self._screen(dataframe))
        kept = admit(
            screening,
            max_share=self.settings.max_reject_share,
            setting="data.p2r.max_reject_share",
            listing=self.settings.listing(self.role),
        )
        if screening.rejects:
            dataframe = dataframe.select(kept)
        return super().maybe_filter_out_long_prompts(dataframe)

    @classmethod
    async def process_multi_modal_info(cls, messages: list[dict], image_patch_size, config):
        """Decode a prompt's media once for all its rollouts, which verl would decode once for each."""
        sources = sources_in(messages, image_patch_size)
        if sources is None:  # audio
            return await super().process_multi_modal_info(messages, image_patch_size, config)
        cache = cache_of(config)
        media = await asyncio.gather(*map(cache.fetch, sources))
        kinds = [[m for m, source in zip(media, sources, strict=True) if source.kind == k] for k in ("image", "video")]
        return kinds[0] or None, kinds[1] or None, None

    def require_facts(self) -> None:
        """Check that every row lists the facts that the judge `facts` looks for.

        Raises:
            ValueError: naming the first row without.
        """
        for i, columns in enumerate(self.dataframe):
            row = Row.from_columns({**columns, "extra_info": {"index": i, **(columns.get("extra_info") or {})}})
            if row.facts is None:
                raise ValueError(
                    f"{', '.join(map(str, self.original_data_files))}: {row.name}: field extra_info.facts is missing, "
                    "and the judge 'facts' needs it: list the facts, or choose another algorithm.p2r.judge.name"
                )

    def _read_files_and_tokenize(self):
        """verl's reading, with records, with files whose media have different fields, and without a copy on disk."""
        self._unusable: dict[int, RowError] = {}
        tables: list[pa.Table] = []
        for file in self.data_files:
            table, errors = self._read(file)
            offset = sum(map(len, tables))
            self._unusable |= {offset + row: error for row, error in errors.items()}
            tables.append(table)
        self._ends = list(accumulate(map(len, tables)))
        table = joined(tables, self.original_data_files, self._shapeless)
        total = len(table)
        self._origins: list[int] | range = range(total)
        dataframe = datasets.Dataset(table, fingerprint=key_of(self.data_files))  # else the whole table is hashed
        if 0 < self.max_samples < total:
            if self.shuffle:
                drawn = np.random.default_rng(self.seed).choice(total, size=self.max_samples, replace=False)
                self._origins = drawn.tolist()
            else:
                self._origins = range(self.max_samples)
            dataframe = dataframe.select(self._origins)
        self.dataframe = self.maybe_filter_out_long_prompts(dataframe)

    def _read(self, file: str) -> tuple[pa.Table, dict[int, RowError]]:
        return read_table(file, lambda records: to_table(records, self._template()), self._shapeless)

    @property
    def _shapeless(self) -> tuple[str, ...]:
        """The columns whose values may differ in shape from row to row."""
        return self.prompt_key, self.image_key, self.video_key

    def _template(self) -> PromptTemplate:
        return PromptTemplate.load(self.settings.prompt_template)

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        """The messages with media in place; as in verl, they take the place of the row's own."""
        fields = {"image": self.image_key, "video": self.video_key, "audio": self.audio_key}

        def read(medium: Any, kind: str) -> dict[str, Any]:
            return self.settings.element(medium, self.media, kind, fields[kind])

        example[key] = build_messages(example, key, fields, read)
        return example[key]

    def _screen(self, dataframe: datasets.Dataset) -> Screening:
        spec = VisionSpec.from_processor(self.processor, self.mm_processor_kwargs)
        limit = Limit(self.max_prompt_length, "data.max_prompt_length", self.tokenizer, spec)
        return screen(rows_of(dataframe), self._sample, self._place, limit, total=len(dataframe))

    def _place(self, position: int) -> tuple[str, int]:
        """What names a row in messages: its file, and its row there."""
        origin = self._origins[position]
        file = bisect_right(self._ends, origin)
        return str(self.original_data_files[file]), origin - (self._ends[file - 1] if file else 0)

    def _sample(self, position: int, columns: dict[str, Any]) -> Sample:
        """A row as screening sees it.

        Raises:
            RowError: its columns are wrong.
        """
        if (error := self._unusable.get(self._origins[position])) is not None:
            raise error
        fields = {"image": self.image_key, "video": self.video_key}
        with columns_at_fault(self.prompt_key):
            row = Row.from_columns(columns)
            check_truth(row.problem_type, row.solution, row.options, "reward_model.ground_truth")
            messages = self._build_messages(columns, self.prompt_key)
            media = media_in(messages, fields)
            if VisionSpec.from_processor(self.processor) is not None:
                check_modalities(messages, self.prompt_key)
            if not media:
                raise RowError(
                    ", ".join(fields.values()),
                    "no media",
                    f"fields {' and '.join(fields.values())} are empty: a row needs the media its question is about; "
                    "drop text-only rows",
                )
            text = self._text(messages)
        return Sample(text, media)

    def _text(self, messages: list[dict]) -> str:
        """What verl's agent loop renders."""
        return apply_chat_template(
            self.processor or self.tokenizer,
            messages,
            tokenize=False,
            add_generation_prompt=True,
            tools=self.tool_schemas,
            **self.apply_chat_template_kwargs,
        )

    def _key(self) -> str:
        """What the outcome of a screening depends on."""
        probe = self._text([{"role": "user", "content": self._template().body}])
        return key_of(
            self.data_files,
            self._origins,
            (self.prompt_key, self.image_key, self.video_key, self.max_prompt_length),
            (self.settings.sources, self.media, self._template()),
            VisionSpec.from_processor(self.processor, self.mm_processor_kwargs),
            (getattr(self.processor, "chat_template", None), self.tokenizer.chat_template),
            (self.apply_chat_template_kwargs, self.tool_schemas),
            (len(self.tokenizer), self.tokenizer(probe)["input_ids"]),  # two tokenizers that agree on it are one
        )


def _listed(files: Any) -> list[str]:
    """verl's `train_files` is one path or a list of them."""
    if files is None:
        return []
    return [files] if isinstance(files, str) else [str(file) for file in files]
