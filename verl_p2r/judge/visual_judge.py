# SPDX-License-Identifier: Apache-2.0
"""The judge `visual`: a vision-language model that sees the frames, and accepts what is true of them and sufficient.

The paper's judge never looks, so it rewards evidence that is invented but consistent. ReWatch-R1 (arXiv 2509.23652)
shows why a judge should look [ours].
"""

import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from PIL import Image

from verl_p2r.chat.errors import Unanswered
from verl_p2r.judge.openai_judge import OpenAIJudge
from verl_p2r.judge.protocol import JudgeRequest, Verdict
from verl_p2r.judge.sent_media import SentMedia
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.message_parts import VideoAs
from verl_p2r.sizes import GIB

NOTHING_TO_SEE = "the row has no video or image that can be read, which the judge visual needs"


class VisualJudge(OpenAIJudge):
    """Asks a vision-language model behind an OpenAI-compatible server whether an observation is true and sufficient.

    It is shown the same frames as the policy, with their times in the file. A row without media, or with a medium that
    cannot be read, gets no verdict.

    Args:
        model: See `OpenAIJudge`.
        base_urls: See `OpenAIJudge`.
        video_as: `video` sends all frames as one video with their times, which vLLM understands. `images` sends each
            frame as an image after its time as text, for other servers; it takes twice the vision tokens.
        patch_size: Patch size of the model's vision tower, in pixels: 14 for Qwen2.5-VL, 16 for Qwen3-VL.
        frame_cache: A folder of decoded frames, such as `data.p2r.media_cache.directory`; None: decode again.
        frame_cache_gib: Limit for that folder, in GiB.
        media_kept: The most media kept in memory, in each process.
        **options: The options of `OpenAIJudge`; the default prompts are `prompts/judge_visual.txt` and
            `prompts/judge_visual_single_token.txt`.

    Raises:
        ValueError: See `OpenAIJudge`; or an option of the media is out of range.
    """

    prompt = "judge_visual"

    def __init__(
        self,
        model: str,
        base_urls: str | Sequence[str],
        *,
        video_as: VideoAs = "video",
        patch_size: int = 14,
        frame_cache: str | None = None,
        frame_cache_gib: float = 100.0,
        media_kept: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(model, base_urls, **options)
        if video_as not in get_args(VideoAs):
            raise ValueError(f"the judge's video_as is {video_as!r}: use one of {', '.join(get_args(VideoAs))}")
        for name, number in (("patch_size", patch_size), ("media_kept", media_kept)):
            if number < 1:
                raise ValueError(f"the judge's {name} is {number}: give a whole number above 0")
        cache = FrameCache(frame_cache, int(frame_cache_gib * GIB)) if frame_cache else None
        self._media = SentMedia(video_as, patch_size, media_kept, cache)
        self._fingerprint.update(json.dumps([video_as, patch_size]).encode())

    @property
    def known_requests(self) -> Mapping[bool, JudgeRequest]:
        """The two questions of the health check, about a picture."""
        return _known_requests()

    async def judge(self, request: JudgeRequest) -> Verdict:
        """Judge one observation; a repeated observation of the same medium gets the cached verdict."""
        if not request.media:
            return Verdict(None, NOTHING_TO_SEE)
        try:
            return await super().judge(request)
        except (OSError, TypeError, ValueError):  # the medium has no identity; reading it has the better message
            return await self.ask_anew(request)

    async def _message(self, request: JudgeRequest) -> tuple[Any, dict[str, Any]]:
        if not request.media:
            raise Unanswered(NOTHING_TO_SEE)
        try:
            parts, fields = await self._media.parts(request.media)
        except Exception as error:  # decoders may raise anything on damaged files
            raise Unanswered(f"the medium cannot be shown: {error}") from error
        prompt, _ = await super()._message(request)
        return [*parts, {"type": "text", "text": prompt}], fields

    def _key(self, request: JudgeRequest) -> bytes:
        return super()._key(request) + self._media.identity(request.media).encode()


@functools.cache
def _known_requests() -> Mapping[bool, JudgeRequest]:
    """An observation that is true of a red picture, and one that is not."""
    file = io.BytesIO()
    Image.new("RGB", (224, 224), (220, 20, 20)).save(file, "PNG")
    question = "Which colour fills the picture?\nOptions:\nA. red\nB. blue"
    return {
        value: JudgeRequest(
            question=question,
            solution="<answer>A</answer>",
            observation=f"The whole picture, from edge to edge, shows a plain area of {colour} without any object.",
            problem_type="multiple choice",
            row=f"the known {'Yes' if value else 'No'}",
            media=({"type": "image", "image": file.getvalue()},),
        )
        for value, colour in ((True, "red"), (False, "blue"))
    }
