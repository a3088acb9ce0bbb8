# SPDX-License-Identifier: Apache-2.0
"""What determines a generated response, whether a server or a Ray cluster runs the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from verl_p2r.chat.client import Reply, UselessReply
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record
from verl_p2r.media.rules import TRAINING, MediaSettings

NOT_IN_FINGERPRINT = ("base_urls", "api_key_env", "concurrency", "timeout_s", "deadline_s", "readers", "offline")
"""Settings that do not change a response."""


@dataclass(frozen=True)
class GenerateSettings:
    """How responses are generated.

    Args:
        model: name of the model on its server.
        base_urls: addresses of the servers, such as `http://localhost:8000/v1`.
        api_key_env: environment variable with the API key, if the server wants one.
        concurrency: calls in flight at once.
        timeout_s: limit of one attempt, in seconds.
        deadline_s: limit of one record with all retries, in seconds.
        temperature: sampling temperature; 0 in the paper.
        max_tokens: the most tokens of a response.
        extra_body: more fields of each request.
        prompt_template: one of the package's templates, or a text file.
        video_as: `video` for vLLM, `images` for servers that accept images only.
        patch_size: patch size of the served model's vision tower, in pixels: 14 for Qwen2.5-VL, 16 for Qwen3-VL.
        media: limits on frames and pixels; those of training by default.
        readers: media read at a time; 0 means one for each core that this process may use.
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
    video_as: Literal["video", "images"] = "video"
    patch_size: int = 14
    media: MediaSettings = TRAINING
    readers: int = 0
    offline: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.max_tokens < 1 or self.readers < 0:
            raise ValueError("patch_size and max_tokens must be at least 1, and readers at least 0")
        if self.video_as not in ("video", "images"):
            raise ValueError(f"video_as is {self.video_as!r}: give video or images")

    def fingerprint(self, template: PromptTemplate) -> dict[str, Any]:
        """Return every input except the record and its medium that determines a response.

        Args:
            template: the loaded prompt template.

        Raises:
            ValueError: the model has no name.
        """
        if not self.model:
            raise ValueError(
                "no model is named: give --model, or generate.model in a build's file, as its server knows it"
            )
        own = {name: value for name, value in asdict(self).items() if name not in NOT_IN_FINGERPRINT}
        return {**own, "template": asdict(template)}


def prompt_of(record: Record, template: PromptTemplate) -> str:
    """Return the text of a record's prompt, as it follows the medium in training."""
    return template.render(record.question, record.problem_type)


def text_of(reply: Reply) -> str:
    """Return what the model wrote.

    Raises:
        UselessReply: it wrote nothing.
    """
    if not reply.text.strip():
        raise UselessReply(f"the reply is empty{reply.shortfall}")
    return reply.text
