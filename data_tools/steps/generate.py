# SPDX-License-Identifier: Apache-2.0
"""Step 1: a strong vision-language model answers each record in the template (arXiv 2511.11113, §3)."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_tools.media.parts import MediaParts, VideoAs, media_parts
from data_tools.records.files import Record
from data_tools.steps.asking import NobodyReplies, asking_step
from data_tools.steps.run import StepReport, Told
from verl_p2r.chat.client import ChatClient, Reply, Unanswered, UselessReply
from verl_p2r.cpus import available_cpus
from verl_p2r.data.columns import PromptTemplate, columns_of
from verl_p2r.data.rows import RowError
from verl_p2r.media.plan import TRAINING, MediaSettings

_BARE = PromptTemplate("{question}", {})
AHEAD = 1.5  # records in hand for each call that may be in flight: their media are read while others wait


@dataclass(frozen=True)
class GenerateSettings:
    """How responses are generated.

    Args:
        model: its name on the server.
        base_urls: of the servers, such as `http://localhost:8000/v1`.
        api_key_env: the environment variable that holds the key, if the server wants one.
        concurrency: calls in flight at once.
        timeout_s, deadline_s: of one attempt, and of one record with all retries, in seconds.
        temperature, max_tokens: of sampling; the paper's temperature is 0.
        extra_body: more fields of each request.
        prompt_template: one of the package's, or a text file.
        video_as: `video` for vLLM, `images` for servers that know images only.
        patch_size: of the served model's vision tower, in pixels: 14 for Qwen2.5-VL, 16 for Qwen3-VL.
        media: frames and pixels, at most; the default is training's.
        readers: media read at a time; 0: one for each core that this process may run on.
        offline: options of Ray Data's `vLLMEngineProcessorConfig`, see `generate_ray`.
    """

    model: str = ""
    base_urls: tuple[str, ...] = ()
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 64
    timeout_s: float = 300.0
    deadline_s: float = 1200.0
    temperature: float = 0.0
    max_tokens: int = 2048
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    prompt_template: str = "process_aware"
    video_as: VideoAs = "video"
    patch_size: int = 14
    media: MediaSettings = TRAINING
    readers: int = 0
    offline: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.max_tokens < 1 or self.readers < 0:
            raise ValueError("patch_size and max_tokens must be at least 1, and readers at least 0")

    @property
    def kept(self) -> dict[str, Any]:
        """The settings that determine a response, for the manifest and for the keys of replies."""
        own = asdict(self)
        return {name: own[name] for name in own if name not in _OF_THE_WAY}


_OF_THE_WAY = ("base_urls", "api_key_env", "concurrency", "timeout_s", "deadline_s", "readers", "offline")


class Generator:
    """Asks a server for responses.

    Args:
        settings: how.
        root: the folder that the records' paths start from.

    Raises:
        ValueError: a setting cannot be used.
    """

    def __init__(self, settings: GenerateSettings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.template = PromptTemplate.load(settings.prompt_template)
        self.fingerprint: Mapping[str, Any] = fingerprint_of(settings, self.template)
        self.client = ChatClient(
            settings.model,
            settings.base_urls,
            api_key_env=settings.api_key_env,
            concurrency=settings.concurrency,
            connect_timeout_s=min(5.0, settings.timeout_s),
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            body={"temperature": settings.temperature, "max_tokens": settings.max_tokens, **settings.extra_body},
            who="generate",
        )
        self.concurrency = int(settings.concurrency * AHEAD) + 1
        self._reached: asyncio.Task[None] | None = None
        self._readers = ThreadPoolExecutor(settings.readers or available_cpus(), thread_name_prefix="media")

    async def ask(self, record: Record) -> dict[str, Any]:
        """The model's response to a record, as it came."""
        self._reached = self._reached or asyncio.create_task(self._reach())  # once, for all who wait
        await asyncio.shield(self._reached)
        loop = asyncio.get_running_loop()
        media: MediaParts = await loop.run_in_executor(self._readers, self._media, record)
        parts = [*media.parts, {"type": "text", "text": prompt_of(record, self.template)}]
        return {"output": await self.client.complete(parts, text_of, **media.body)}

    async def check(self) -> None:
        await self.client.complete("Reply with the word yes.", text_of)

    async def _reach(self) -> None:
        try:
            await self.client.reach()
        except Unanswered as error:
            raise NobodyReplies(f"generate: {error}") from None

    async def aclose(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        await self.client.aclose()

    def _media(self, record: Record) -> MediaParts:
        own = self.settings
        return media_parts(record, self.root, own.media, video_as=own.video_as, patch_size=own.patch_size)


def fingerprint_of(settings: GenerateSettings, template: PromptTemplate) -> dict[str, Any]:
    """Every input except the record and its medium that determines a response, however it is generated.

    Raises:
        ValueError: the model has no name.
    """
    if not settings.model:
        raise ValueError("generate.model is not set: name the model as its server does")
    return {**settings.kept, "template": asdict(template)}


def prompt_of(record: Record, template: PromptTemplate) -> str:
    """The text of a record's prompt, as training has it behind the medium."""
    columns = columns_of(record.to_json(), 0, template)
    return columns["prompt"][0]["content"].removeprefix(f"<{record.data_type}>")


def question_of(record: Record) -> str:
    """A record's question with its options, as it stands in the prompt."""
    return columns_of(record.to_json(), 0, _BARE)["extra_info"]["question"]


def generate(
    files: Sequence[Path],
    folder: Path,
    settings: GenerateSettings,
    root: Path,
    *,
    offline: bool = False,
    max_reject_share: float = 0.01,
    told: Told = lambda kept: None,
) -> StepReport:
    """Generate a response to each record of some files; it becomes the record's `output`.

    Args:
        files: of records, see `records.files_of`.
        folder: for the output, see `steps`; replies are kept beside it, see `replies`.
        settings: how.
        root: the folder that the records' paths start from.
        offline: let a Ray cluster run the model instead of asking a server; see `generate_ray`.
        max_reject_share: the largest share of records, in [0, 1], that may be rejected.
        told: told of each record that has been asked about.

    Raises:
        NobodyReplies: the server is gone or refuses everything; what has come is kept.
        ValueError: a setting, the folder or the file of replies cannot be used.
    """
    from data_tools.steps.generate_ray import OfflineGenerator  # which builds on this module

    def read(record: Record, reply: dict[str, Any]) -> tuple[Record, RowError | None]:
        extra = {name: value for name, value in record.extra.items() if name != "verdict"}  # of an earlier response
        extra["generated_by"] = settings.model
        fresh = replace(record, output=reply["output"], observation=None, process=None, reward=None, select=None)
        return replace(fresh, extra=extra), None

    return asking_step(
        "generate",
        files,
        folder,
        OfflineGenerator(settings, root) if offline else Generator(settings, root),
        read,
        {"output": str},
        max_reject_share=max_reject_share,
        root=root,
        told=told,
    )


def text_of(reply: Reply) -> str:
    """What the model wrote.

    Raises:
        UselessReply: nothing.
    """
    if not reply.text.strip():
        raise UselessReply(f"the reply is empty{reply.shortfall}")
    return reply.text
