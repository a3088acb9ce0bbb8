# SPDX-License-Identifier: Apache-2.0
"""Step 1 without a server: a Ray cluster runs the model, through Ray Data's vLLM integration.

    records ──▶ read media, write prompts, on all cores ──▶ vLLM engines ──▶ replies, as they come

For runs that outgrow one machine. Prompts, frames, sampling and keys of replies are those of a server, so that one way
can finish what the other began. Every node needs this package, vLLM, and the media under the same path.
`GenerateSettings.offline` holds options of Ray Data's `vLLMEngineProcessorConfig`; `model_source` is a folder or name,
by default the name of the model:

    offline:
      model_source: /models/Qwen2.5-VL-72B-Instruct
      concurrency: 4  # engines
      engine_kwargs: {tensor_parallel_size: 4, max_model_len: 32768}

An engine takes `tensor_parallel_size` GPUs. Without GPUs set `placement_group_config: {bundles: [{CPU: 1}]}`, because
Ray otherwise waits for some. A running cluster is found by `RAY_ADDRESS`; without one, Ray starts on this machine.

If an engine refuses a record, that record alone is rejected. If an engine dies, Ray Data starts another and repeats the
request without limit [theirs]: if one record kills engines, stop the run, remove the record, and start again.
"""

import functools
import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_tools.media.parts import media_parts
from data_tools.steps.asking import SILENT, NobodyReplies
from data_tools.steps.generate_settings import GenerateSettings, prompt_of, text_of
from data_tools.steps.ledger import Pending, ReplyLedger
from verl_p2r.chat.client import Reply, UselessReply
from verl_p2r.data.errors import RowError
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record

Row = dict[str, Any]

_ERROR = "__inference_error__"  # Ray Data's own name: its stages skip rows in which it is not empty
_REFUSALS = ("ValueError:", "VLLMValidationError:")  # vLLM's, of one request: its prompt is too long, for example
_DEFAULTS = ("repetition_penalty", "top_k", "top_p", "min_p")  # vLLM's server takes these from the model's folder


class OfflineGenerator:
    """Lets a Ray cluster generate responses.

    Args:
        settings: how to generate; `base_urls` and the other settings of a server have no effect.
        root: folder that the records' paths are relative to, on every node.

    Raises:
        ValueError: a setting cannot be used, or Ray or vLLM is not installed.
    """

    def __init__(self, settings: GenerateSettings, root: Path) -> None:
        self.template = PromptTemplate.load(settings.prompt_template)
        self.fingerprint: Mapping[str, Any] = settings.fingerprint(self.template)
        defaults = {"model_source": settings.model, "batch_size": 32, "log_engine_metrics": False}
        self.options = {**defaults, **settings.offline}
        # With a cache, vLLM takes a medium for cached after refusing its first prompt, and the next one about it fails.
        self.options["engine_kwargs"] = {"mm_processor_cache_gb": 0, **settings.offline.get("engine_kwargs", {})}
        self.sampling = _sampling(settings, self.options["model_source"])
        self.settings, self.root = settings, root.absolute()

    def ask_all(self, records: Iterable[Record], ledger: ReplyLedger) -> None:
        """Generate responses to the pending records.

        Raises:
            NobodyReplies: Ray or its engines have failed, or answer nothing; replies so far are stored.
            ValueError: Ray Data does not accept an option.
        """
        keys: dict[str, bytes] = {}  # by `problem_id`, because only the record travels through the cluster

        def all_pending() -> Iterator[Record]:
            for record in records:
                if (pending := ledger.pending(record)) is not None:
                    keys[record.problem_id] = pending.key
                    yield record

        new = all_pending()
        first = next(new, None)
        if first is None:
            return  # starting engines takes minutes
        import ray
        from ray.exceptions import RayError

        try:
            for row in self._rows(itertools.chain([first], new)):
                record = pickle.loads(row["record"])
                self._note(row, Pending(record, keys[record.problem_id]), ledger)
        except (RayError, ray.data.exceptions.RayDataUserCodeException) as error:
            why = str(error).strip().splitlines()[-1]  # the lines before it are a traceback
            raise NobodyReplies(
                f"generate: Ray has failed ({why}). What has come so far is kept: fix it and start again"
            ) from error

    def _rows(self, records: Iterator[Record]) -> Iterator[Row]:
        """Yield the result of each record, in any order."""
        import pyarrow
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        try:
            # Prompts are written where media are read, because Ray Data's stages for them have one process an engine.
            off: Row = dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False)
            config = vLLMEngineProcessorConfig(**self.options, **off, should_continue_on_error=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"generate.offline: Ray Data does not accept it: {error}") from None
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # we show our own
        prepare = _preparation(self)
        processor = build_processor(
            config, preprocess=prepare, postprocess=_outcome, preprocess_map_kwargs={"num_cpus": 1}
        )
        blocks: list[Any] = []  # held by Ray, which spills them to disk; a block is the work of one engine call
        while block := [{"record": pickle.dumps(record)} for record in itertools.islice(records, config.batch_size)]:
            blocks.append(ray.put(pyarrow.Table.from_pylist(block)))
        yield from processor(ray.data.from_arrow_refs(blocks)).iter_rows()

    def _note(self, row: Row, pending: Pending, ledger: ReplyLedger) -> None:
        if row.get("unusable"):
            ledger.unusable(pending, pickle.loads(row["unusable"]))
        elif (why := row.get(_ERROR, "")).startswith(_REFUSALS):
            ledger.refused(pending, why)
        elif why:
            ledger.no_reply(pending, why)
            if ledger.silent >= max(SILENT, 2 * self.options["batch_size"]):
                raise NobodyReplies(f"generate: {why}. What has come so far is kept: fix it and start again")
        else:
            cut = row["num_generated_tokens"] >= self.sampling["max_tokens"]
            try:
                ledger.replied(pending, {"output": text_of(Reply(row["generated_text"], cut))})
            except UselessReply as error:
                ledger.useless(pending, str(error))


def _sampling(settings: GenerateSettings, source: str) -> Row:
    """Return arguments of vLLM's `SamplingParams`: a request's, and the model's defaults, as vLLM's server does."""
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
        raise ValueError(f"generate.extra_body: vLLM's SamplingParams does not accept it: {error}") from None
    return sampling


def _preparation(offline: OfflineGenerator) -> Callable[[Row], Row]:
    """Return the function that prepares a record for an engine, on a worker."""
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
        connector = MediaConnector(media_io_kwargs=media.body.get("media_io_kwargs"))  # as in the server
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
