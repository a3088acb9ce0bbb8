# SPDX-License-Identifier: Apache-2.0
"""Step 1 without a server: a Ray cluster runs the model, through Ray Data's vLLM integration.

    records ──▶ media read and sized, prompts written, on all cores ──▶ vLLM engines ──▶ replies, as they come

For runs that outgrow one machine. Prompts, frames and sampling are those of the online way, so are the replies' keys:
what one way has begun the other can finish. Every node needs this package, vLLM, and the media under the same path.
`GenerateSettings.offline` holds options of Ray Data's `vLLMEngineProcessorConfig`; `model_source`, a folder or a name,
is the model's name unless it is given:

    offline:
      model_source: /models/Qwen2.5-VL-72B-Instruct
      concurrency: 4  # engines
      engine_kwargs: {tensor_parallel_size: 4, max_model_len: 32768}

An engine takes `tensor_parallel_size` GPUs. Without GPUs, say so, or Ray waits for some: `placement_group_config:
{bundles: [{CPU: 1}]}`. A cluster that is up is found by `RAY_ADDRESS`, else Ray starts on this machine.

A record that makes an engine refuse it is rejected alone. When an engine dies, Ray Data starts another and asks again
without end [theirs]: should one record kill engines, stop the run, take the record out, and start again.
"""

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.media.parts import media_parts
from data_tools.records.files import Record
from data_tools.steps.asking import SILENT, Asked, NobodyReplies, Question
from data_tools.steps.generate import GenerateSettings, fingerprint_of, prompt_of, text_of
from verl_p2r.chat.client import Reply, UselessReply
from verl_p2r.data.columns import PromptTemplate
from verl_p2r.data.rows import RowError

Row = dict[str, Any]

_ERROR = "__inference_error__"  # Ray Data's own: its stages pass over rows in which it is not empty
_DEFAULTS = ("repetition_penalty", "top_k", "top_p", "min_p")  # that vLLM's server takes from the model's folder


class OfflineGenerator:
    """Lets a Ray cluster generate responses.

    Args:
        settings: how; `base_urls` and all that belongs to a server has no meaning here.
        root: the folder that the records' paths start from, on every node.

    Raises:
        ValueError: a setting cannot be used, or Ray or vLLM is not installed.
    """

    def __init__(self, settings: GenerateSettings, root: Path) -> None:
        self.template = PromptTemplate.load(settings.prompt_template)
        self.fingerprint: Mapping[str, Any] = fingerprint_of(settings, self.template)
        self.options = {"model_source": settings.model, "log_engine_metrics": False, **settings.offline}
        # Else vLLM takes a medium for cached whose first prompt it has refused, and the next one about it fails.
        self.options["engine_kwargs"] = {"mm_processor_cache_gb": 0, **settings.offline.get("engine_kwargs", {})}
        self.sampling = _sampling(settings, self.options["model_source"])
        self.settings, self.root = settings, root.absolute()

    def ask_all(self, records: Iterable[Record], asked: Asked) -> None:
        """Generate responses to the records that have none.

        Raises:
            NobodyReplies: Ray or its engines have failed, or reply to nothing; what has come is kept.
            ValueError: Ray Data does not take an option.
        """
        keys: dict[str, bytes] = {}  # by the record's id; only the record goes round the cluster

        def unknown() -> Iterator[Record]:
            for record in records:
                if (question := asked.question(record)) is not None:
                    keys[record.problem_id] = question.key
                    yield record

        new = unknown()
        first = next(new, None)
        if first is None:
            return  # to start engines takes minutes
        import ray
        from ray.exceptions import RayError

        try:
            for row in self._rows(itertools.chain([first], new)):
                record = pickle.loads(row["record"])
                self._take(row, Question(record, keys[record.problem_id]), asked)
        except (RayError, ray.data.exceptions.RayDataUserCodeException) as error:
            why = str(error).strip().splitlines()[-1]  # the rest says where
            raise NobodyReplies(
                f"generate: Ray has failed ({why}). What has come so far is kept: fix it and start again"
            ) from error

    def _rows(self, records: Iterator[Record]) -> Iterator[Row]:
        """What comes back of each record, in any order."""
        import pyarrow
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        try:
            # Prompts are written where media are read: Ray Data's own stages for them are one process an engine.
            off: Row = dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False)
            config = vLLMEngineProcessorConfig(**self.options, **off, should_continue_on_error=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"generate.offline: Ray Data does not take it: {error}") from None
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # there is one already
        prepare = _preparation(self)
        processor = build_processor(
            config, preprocess=prepare, postprocess=_outcome, preprocess_map_kwargs={"num_cpus": 1}
        )
        blocks: list[Any] = []  # Ray holds them, and spills them to disk; a block is the work of one call of an engine
        while block := [{"record": pickle.dumps(record)} for record in itertools.islice(records, config.batch_size)]:
            blocks.append(ray.put(pyarrow.Table.from_pylist(block)))
        yield from processor(ray.data.from_arrow_refs(blocks)).iter_rows()

    def _take(self, row: Row, question: Question, asked: Asked) -> None:
        if row.get("unusable"):
            asked.unusable(question, pickle.loads(row["unusable"]))
        elif row.get(_ERROR):
            self._no_reply(question, row[_ERROR], asked)
        else:
            cut = row["num_generated_tokens"] >= self.sampling["max_tokens"]
            try:
                asked.replied(question, {"output": text_of(Reply(row["generated_text"], cut))})
            except UselessReply as error:
                self._no_reply(question, str(error), asked)

    def _no_reply(self, question: Question, why: str, asked: Asked) -> None:
        asked.no_reply(question, why)
        if asked.silent >= max(SILENT, 2 * self.options.get("batch_size", 0)):
            raise NobodyReplies(f"generate: {why}. What has come so far is kept: fix it and start again")


def _sampling(settings: GenerateSettings, source: str) -> Row:
    """Arguments of vLLM's `SamplingParams`: the request's, and the model's own defaults as vLLM's server has them."""
    try:
        import ray.data.llm  # noqa: F401
        from vllm import SamplingParams
        from vllm.transformers_utils.config import try_get_generation_config
    except ImportError as error:
        needed = 'pip install "ray[data,llm]" "vllm>=0.24,<0.29"'
        raise ValueError(f"--offline needs Ray Data and vLLM, {needed}: {error}") from None
    try:
        own = try_get_generation_config(source, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(f"generate.offline.model_source, or else generate.model: {error}") from None
    defaults = own.to_diff_dict() if own else {}
    sampling = {name: defaults[name] for name in _DEFAULTS if defaults.get(name) is not None}
    sampling |= {"temperature": settings.temperature, "max_tokens": settings.max_tokens, **settings.extra_body}
    try:
        SamplingParams(**sampling)
    except (TypeError, ValueError) as error:
        raise ValueError(f"generate.extra_body: vLLM's SamplingParams does not take it: {error}") from None
    return sampling


def _preparation(offline: OfflineGenerator) -> Callable[[Row], Row]:
    """What a worker does with a record before any engine sees it."""
    settings, template, root, sampling = offline.settings, offline.template, offline.root, offline.sampling
    source = offline.options["model_source"]

    def prepare(row: Row) -> Row:
        from vllm.multimodal.media import MediaConnector

        record: Record = pickle.loads(row["record"])
        try:
            media = media_parts(
                record, root, settings.media, video_as=settings.video_as, patch_size=settings.patch_size
            )
        except RowError as error:
            return {"unusable": pickle.dumps(error), _ERROR: error.reason}
        connector = MediaConnector(media_io_kwargs=media.body.get("media_io_kwargs"))  # reads parts as the server does
        content: list[Row] = []
        data: dict[str, list[Any]] = {}
        for part in media.parts:
            kind = part["type"].removesuffix("_url")
            if kind != "text":
                fetch = connector.fetch_video if kind == "video" else connector.fetch_image
                data.setdefault(kind, []).append(fetch(part[f"{kind}_url"]["url"]))
                part = {"type": kind}
            content.append(part)
        content.append({"type": "text", "text": prompt_of(record, template)})
        messages = [{"role": "user", "content": content}]
        prompt = _processor(source).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return {"prompt": prompt, "multimodal_data": data, "sampling_params": dict(sampling), _ERROR: ""}

    return prepare


@functools.cache
def _processor(source: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(source)


def _outcome(row: Row) -> Row:
    return {name: row[name] for name in ("record", "generated_text", "num_generated_tokens")}
