# SPDX-License-Identifier: Apache-2.0
"""The sharing processor: one call for a prompt, bounded memory, failures that are not remembered."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase

from verl_p2r.plugin.media import pixels
from verl_p2r.plugin.media.media_cache import Source
from verl_p2r.plugin.media.sharing import SharingProcessor

pytestmark = pytest.mark.slow  # for the start of Ray
PLENTY = 10**6


class FakeProcessor:
    """Doubles the values of a clip; the ids of a prompt are the length of its text. Waits, so that calls overlap."""

    def __init__(self, failures: int = 0, release: threading.Event | None = None):
        self.calls, self.failures, self.release = 0, failures, release

    def __call__(self, text, images, videos, **kwargs):
        self.calls += 1
        time.sleep(0.001)
        if self.release is not None:
            assert self.release.wait(30)
        if self.calls <= self.failures:
            raise RuntimeError("out of memory")
        grid, ids = torch.tensor([[1, 2, 2]]), torch.tensor([[len(text[0])]])
        return {"input_ids": ids, "attention_mask": ids, "video_grid_thw": grid, "pixel_values_videos": videos[0] * 2.0}


class FakeMedia:
    def sources_of(self, media):
        return tuple(Source("video", str(int(medium[0])), 14) for medium in media)


def test_too_small_pixel_store_still_returns_correct_pixels(queue):
    """With hundreds of callers and room for two prompts, each caller gets its own prompt's pixels."""
    clips = [torch.full((64,), float(i)) for i in range(40)]
    shared = SharingProcessor(FakeProcessor(), FakeMedia(), pixels.PixelStore(2 * clips[0].nbytes))

    def ask(i: int) -> bool:
        reference = shared.pixels_of(text=["x" * i], videos=[clips[i]])
        small = shared(text=["x" * i], videos=[clips[i]])
        return (
            bool((pixels.tensors(reference)["pixel_values_videos"] == 2 * i).all()) and small["input_ids"].item() == i
        )

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, [i % 40 for i in range(400)]))


def test_sglang_payload_gets_its_own_copy_of_pixels(queue):
    """verl's payload for SGLang takes them from what the processor returns to the builder."""
    clip = torch.full((64,), 3.0)
    shared = SharingProcessor(FakeProcessor(), FakeMedia(), pixels.PixelStore(PLENTY), return_pixels=True)
    for _ in range(2):
        [payload] = AgentLoopBase.build_sglang_video_payload([clip], shared(text=["x"], videos=[clip]))
        assert torch.equal(torch.cat([payload["pixel_values_videos"]]), clip * 2)
        payload["pixel_values_videos"] += 1
    assert "pixel_values_videos" not in SharingProcessor(FakeProcessor(), FakeMedia(), pixels.PixelStore(PLENTY))(
        text=["x"], videos=[clip]
    )


def together(count: int, ask, release: threading.Event) -> list:
    """Call `ask` in threads that have all started before the processor goes on; give results and exceptions."""
    started = threading.Barrier(count + 1)

    def one():
        started.wait()
        return ask()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one) for _ in range(count)]
        started.wait()
        time.sleep(0.05)
        release.set()
        return [future.exception() or future.result() for future in futures]


def test_concurrent_callers_share_one_processor_call(queue):
    release = threading.Event()
    processor, clip = FakeProcessor(release=release), torch.full((64,), 3.0)
    shared = SharingProcessor(processor, FakeMedia(), pixels.PixelStore(PLENTY))
    got = together(16, lambda: shared.pixels_of(text=["x"], videos=[clip]), release)
    assert processor.calls == 1
    assert len(set(got)) == 1
    shared(text=["xx"], videos=[clip])  # another question about the clip needs its own token ids
    assert [int(shared(text=[text], videos=[clip])["input_ids"]) for text in ("x", "xx")] == [1, 2]
    assert processor.calls == 2


def test_processor_failure_reaches_all_waiters_and_is_not_cached(queue):
    release = threading.Event()
    processor, clip = FakeProcessor(failures=1, release=release), torch.full((64,), 3.0)
    shared = SharingProcessor(processor, FakeMedia(), pixels.PixelStore(PLENTY))
    got = together(4, lambda: shared.pixels_of(text=["x"], videos=[clip]), release)
    assert [str(error) for error in got] == ["out of memory"] * 4
    assert int(shared(text=["x"], videos=[clip])["input_ids"]) == 1
    assert processor.calls == 2
