# SPDX-License-Identifier: Apache-2.0
"""verl's RL dataset, which also reads records and screens its rows before the run. Set it as `data.custom_cls`.

Without screening, a bad row fails inside an agent loop during training, where verl logs the error and goes on without
the prompt. Or verl's filter of over-long prompts drops it silently, after decoding every video.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.chat_template import apply_chat_template

from verl_p2r.data.columns import to_table
from verl_p2r.data.errors import RowError
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.rejects import Screening, keep_or_raise, key_of, load_or_screen
from verl_p2r.data.rows import Row
from verl_p2r.data.screening import Limit, Sample, check_modalities, columns_at_fault, media_in, screen
from verl_p2r.data.settings import DataSettings
from verl_p2r.data.tables import load, rows_of
from verl_p2r.data.truths import check_truth
from verl_p2r.media.plan import VisionSpec
from verl_p2r.media.rules import MediaSettings
from verl_p2r.plugin.media.media_cache import cache_of, sources_in


class P2RDataset(RLHFDataset):
    """Reads rows of verl's parquet or JSON, or records of Video-R1 and VideoP2R, and rejects those that cannot work.

    In addition to verl's columns, rows have `problem_type` or `extra_info.problem_type`. The settings are the node
    `data.p2r` (`DataSettings`). Without that node, media keep their own fields, and more than 1 % of bad rows end the
    run. The data set is for validation if its files are `data.val_files` and not also `data.train_files`.

    Raises:
        ValueError: more rows than `data.p2r.max_reject_share` are rejected. The message has counts by reason, the first
            rows with file, row and field, and the name of the file that lists all.
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

    def maybe_filter_out_long_prompts(self, dataframe: Any = None) -> datasets.Dataset:
        """Reject the rows that cannot work, then apply verl's own filter, which our configuration switches off."""
        screening = load_or_screen(self.settings.cache_folder, self._key(), lambda: self._screen(dataframe))
        kept = keep_or_raise(
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
        """Decode a prompt's media once for all its rollouts; verl would decode them once for each."""
        sources = sources_in(messages, image_patch_size)
        if sources is None:  # audio
            return await super().process_multi_modal_info(messages, image_patch_size, config)
        cache = cache_of(config)
        media = await asyncio.gather(*map(cache.fetch, sources))
        kinds = [[m for m, source in zip(media, sources, strict=True) if source.kind == k] for k in ("image", "video")]
        return kinds[0] or None, kinds[1] or None, None

    def require_facts(self) -> None:
        """Check that every row lists facts, which the judge `facts` needs.

        Raises:
            ValueError: a row lists none; the message names the first one.
        """
        for i, columns in enumerate(self.dataframe):
            row = Row.from_columns({**columns, "extra_info": {"index": i, **(columns.get("extra_info") or {})}})
            if row.facts is None:
                raise ValueError(
                    f"{', '.join(map(str, self.original_data_files))}: {row.name}: field extra_info.facts is missing, "
                    "and the judge 'facts' needs it: list the facts, or choose another algorithm.p2r.judge.name"
                )

    def _read_files_and_tokenize(self):
        """Read as verl does, and also records and files whose media have different fields; without a copy on disk."""
        table, self._origins = load(
            self.data_files,
            lambda records: to_table(records, self._template()),
            self._shapeless,
            self.original_data_files,
        )
        total = len(table)
        self._rows: Sequence[int] = range(total)  # row of each position in the table
        # Without a fingerprint, `datasets` would hash the whole table.
        dataframe = datasets.Dataset(table, fingerprint=key_of(self.data_files))
        if 0 < self.max_samples < total:
            if self.shuffle:
                self._rows = np.random.default_rng(self.seed).choice(total, self.max_samples, replace=False).tolist()
            else:
                self._rows = range(self.max_samples)
            dataframe = dataframe.select(self._rows)
        self.dataframe = self.maybe_filter_out_long_prompts(dataframe)

    @property
    def _shapeless(self) -> tuple[str, ...]:
        """The columns whose values may differ in shape from row to row."""
        return self.prompt_key, self.image_key, self.video_key

    def _template(self) -> PromptTemplate:
        return PromptTemplate.load(self.settings.prompt_template)

    def _build_messages(self, example: dict, key: str) -> list[dict]:
        """Build the messages with media in place; as in verl, they replace those of the row."""
        fields = {"image": self.image_key, "video": self.video_key, "audio": self.audio_key}
        example[key] = self.settings.messages(example, key, fields, self.media)
        return example[key]

    def _screen(self, dataframe: datasets.Dataset) -> Screening:
        spec = VisionSpec.from_processor(self.processor, self.mm_processor_kwargs)
        limit = Limit(self.max_prompt_length, "data.max_prompt_length", self.tokenizer, spec)
        return screen(rows_of(dataframe), self._sample, self._place, limit, total=len(dataframe))

    def _place(self, position: int) -> tuple[str, int]:
        return self._origins.place(self._rows[position])

    def _sample(self, position: int, columns: dict[str, Any]) -> Sample:
        """Make the sample of a row for the screening.

        Raises:
            RowError: its columns are wrong.
        """
        if (error := self._origins.unusable.get(self._rows[position])) is not None:
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
        """Render messages as verl's agent loop does."""
        return apply_chat_template(  # type: ignore[return-value]  # a text, because tokenize is False
            self.processor or self.tokenizer,
            messages,
            tokenize=False,
            add_generation_prompt=True,
            tools=self.tool_schemas,
            **self.apply_chat_template_kwargs,
        )

    def _key(self) -> str:
        """Return the key of everything that the outcome of a screening depends on."""
        probe = self._text([{"role": "user", "content": self._template().body}])
        return key_of(
            self.data_files,
            self._rows,
            (self.prompt_key, self.image_key, self.video_key, self.max_prompt_length),
            (self.settings.sources, self.media, self._template()),
            VisionSpec.from_processor(self.processor, self.mm_processor_kwargs),
            (getattr(self.processor, "chat_template", None), self.tokenizer.chat_template),
            (self.apply_chat_template_kwargs, self.tool_schemas),
            (len(self.tokenizer), self.tokenizer(probe)["input_ids"]),  # tokenizers that agree on it count as equal
        )


def _listed(files: Any) -> list[str]:
    """Return verl's `train_files`, one path or several, as a list."""
    if files is None:
        return []
    return [files] if isinstance(files, str) else [str(file) for file in files]
