# SPDX-License-Identifier: Apache-2.0
"""lmms-eval's model `p2r`: sends a video as verl_p2r samples it, as one video with its true times, in our template."""

import asyncio
import re
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from data_tools.evaluate.run import DEFAULTS
from data_tools.media.parts import media_parts
from data_tools.steps.chat_server import ChatServer
from data_tools.steps.generate_settings import GenerateSettings
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record

_OPTIONS = re.compile(r"^\(?A[.):]", re.MULTILINE)


class P2R(lmms):
    """A model behind an OpenAI-compatible server with video, such as vLLM.

    Args:
        model: name of the model on its server.
        base_url: the server, http://…/v1.
        prompt: `process_aware`, `chain_of_thought`, `direct`, or a text file.
        temperature: sampling temperature; the tasks' own settings do not apply.
        top_p: nucleus of sampling.
        max_tokens: most tokens of a reply.
        concurrency: calls in flight at once.
    """

    is_simple = True

    def __init__(
        self,
        model: str,
        base_url: str,
        prompt: str = "process_aware",
        temperature: float = 0.01,
        top_p: float = 0.001,
        max_tokens: int = 2048,
        concurrency: int = 32,
        **_lmms_eval: Any,
    ) -> None:
        super().__init__()
        self.settings = GenerateSettings(
            model=model,
            base_urls=(base_url,),
            concurrency=int(concurrency),
            temperature=float(temperature),
            max_tokens=int(max_tokens),
            extra_body={"top_p": float(top_p)},
            media=DEFAULTS.media,
        )
        self.template = PromptTemplate.load(prompt)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Ask about every request, and return the replies in the same order.

        Raises:
            ValueError: a request has no video, or several.
            Unanswered: the server gave no reply.
        """
        return asyncio.run(self._ask_all([request.args for request in requests]))

    async def _ask_all(self, requests: list[tuple[Any, ...]]) -> list[str]:
        server = ChatServer(self.settings, "the evaluated model")
        free = asyncio.Semaphore(2 * self.settings.concurrency)  # as many videos in memory

        async def ask(context: str, _: Any, visual: Any, place: Any, task: str, split: str) -> str:
            async with free:
                [video] = visual(self.task_dict[task][split][place])
                record = record_of(context, task, str(video))
                shown = await asyncio.to_thread(media_parts, record, Path("/"), self.settings.media)
                text = self.template.render(record.question, record.problem_type)
                content = [*shown.parts, {"type": "text", "text": text}]
                return await server.complete(content, lambda reply: reply.text, **shown.body)

        try:
            await server.reach()
            return list(await asyncio.gather(*(ask(*request) for request in requests)))
        finally:
            await server.aclose()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not available: a chat server does not return the probability of a given text."""
        raise NotImplementedError("the model p2r only generates: choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not available: an episode of verl_p2r has one turn."""
        raise NotImplementedError("the model p2r answers in one turn: choose tasks with output_type generate_until")


def record_of(question: str, task: str, video: str) -> Record:
    """Make a record of a task's prompt and video.

    The form of the answer follows the prompt: a letter where it lists options, a number in VSI-Bench, otherwise text.
    """
    kind = "multiple choice" if _OPTIONS.search(question) else "regression" if "vsibench" in task else "free-form"
    return Record("0", question.strip(), kind, "video", str(Path(video).resolve()).lstrip("/"), "A", (), task)
