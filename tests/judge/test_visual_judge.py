# SPDX-License-Identifier: Apache-2.0
"""The judge that looks: frames and their times arrive at a real HTTP server, and verdicts follow what they show."""

import asyncio
import dataclasses
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from scripted_server import ScriptedServer, completion, http
from vision_answer import frames_of

from verl_p2r.judge import JudgeRequest, check_judge, default_template, get_judge, sent_media
from verl_p2r.judge.registry import signature_of
from verl_p2r.judge.visual_judge import NOTHING_TO_SEE, VisualJudge
from verl_p2r.media.deadline import MediaError
from verl_p2r.media.decode import fetch_video
from verl_p2r.media.frame_cache import FrameCache
from verl_p2r.media.rules import TRAINING

YES = "<judgement>Yes</judgement>"


def video(path, **rules) -> dict:
    return {"type": "video", "video": str(path), **rules}


def request(*media, observation="A plain grey picture becomes brighter.") -> JudgeRequest:
    return JudgeRequest("What happens?", "it becomes brighter", observation, "free-form", row="row 1", media=media)


def asked(*requests: JudgeRequest, **options):
    """Verdicts of requests made at once, and the bodies that the server got."""

    async def main():
        word = "Yes" if options.get("reply") == "single_token" else YES
        async with ScriptedServer(lambda head, body: http(completion(word))) as server:
            judge = VisualJudge("m", server.base_url, **options)
            verdicts = await asyncio.gather(*map(judge.judge, requests))
            await judge.aclose()
            return verdicts, [json.loads(body) for body in server.bodies]

    return asyncio.run(main())


def grey_index(frame) -> float:
    """The index that a frame of `make_clip` encodes in its grey."""
    return (float(frame.mean()) - 16) / 5


def test_a_video_arrives_with_the_times_of_its_frames(make_clip):
    clip = make_clip(40, 4)
    (verdict,), (body,) = asked(request(video(clip, fps=1.0, min_frames=4, max_frames=16)))
    assert verdict.value is True
    part, prompt = body["messages"][0]["content"]
    told = body["media_io_kwargs"]["video"]
    assert (told["fps"], told["total_num_frames"], told["duration"]) == (4.0, 40, 10.0)
    frames = frames_of(body)
    assert len(frames) == len(told["frames_indices"]) == 10  # one a second
    assert [round(grey_index(frame)) for frame in frames] == told["frames_indices"]
    assert part["type"] == "video_url"
    assert "=== OBSERVATION" in prompt["text"]
    assert "A plain grey picture becomes brighter." in prompt["text"]
    assert prompt["text"].startswith("You check whether a written observation of a video or an image is true")


def test_images_follow_their_times(make_clip):
    clip = make_clip(40, 4)
    media = video(clip, fps=2.0, min_frames=4, max_frames=16, video_start=5.0, video_end=7.0)
    _, (body,) = asked(request(media), video_as="images", reply="single_token")
    *parts, prompt = body["messages"][0]["content"]
    seconds = [float(part["text"].strip("<>").split()[0]) for part in parts[::2]]
    shown = [grey_index(frame) / 4 for frame in frames_of(body)]
    assert len(seconds) == len(shown) == 4
    assert 5.0 <= min(seconds) <= max(seconds) <= 7.0
    assert all(abs(a - b) < 0.25 for a, b in zip(seconds, shown, strict=True))  # less than a frame
    assert "media_io_kwargs" not in body
    assert body["max_tokens"] == 1
    assert prompt["text"].endswith("Reply with one word and nothing else: Yes or No.\n")


def test_the_frames_are_those_that_the_policy_sees(make_clip, tmp_path):
    """From the same entry of the cache on disk: the judge decodes nothing that the policy has decoded."""
    clip = make_clip(40, 4)
    element = TRAINING.fill(video(clip))
    frames, metadata = fetch_video(element, 14)
    cache = FrameCache(tmp_path / "frames", 10**9)
    cache.put(FrameCache.key(element, 14), torch.full_like(frames, 99), metadata)
    _, (body,) = asked(request(video(clip)), frame_cache=str(tmp_path / "frames"))
    assert body["media_io_kwargs"]["video"]["frames_indices"] == [int(i) for i in metadata["frames_indices"]]
    assert {round(float(frame.mean())) for frame in frames_of(body)} == {99}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_medium_behind_a_url_is_fetched_once_for_a_group(make_clip, tmp_path, kind):
    """If the run allows URLs; it has no place in the cache on disk, because what is behind a URL may change."""
    Image.new("RGB", (112, 112), (200, 30, 30)).save(tmp_path / "a.png")
    file = {"image": tmp_path / "a.png", "video": make_clip(8, 4)}[kind].read_bytes()

    async def main():
        async with (
            ScriptedServer(lambda head, body: http(file)) as media,
            ScriptedServer(lambda head, body: http(completion(YES))) as server,
        ):
            element = {"type": kind, kind: f"http://127.0.0.1:{media.port}/a", "allow_urls": True}
            judge = VisualJudge("m", server.base_url, frame_cache=str(tmp_path / "frames"))
            verdicts = await asyncio.gather(*(judge.judge(request(element)) for _ in range(4)))
            await judge.aclose()
            return verdicts, len(media.heads)

    verdicts, fetched = asyncio.run(main())
    assert [verdict.value for verdict in verdicts] == [True] * 4
    assert fetched == 1


def test_a_picture_and_two_videos_in_their_order(make_clip, tmp_path):
    Image.new("RGB", (112, 112), (200, 30, 30)).save(tmp_path / "a.png")
    media = (
        {"type": "image", "image": (tmp_path / "a.png").read_bytes()},
        video(make_clip(8, 4)),
        video(make_clip(8, 2)),
    )
    _, (body,) = asked(request(*media))
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", *["text", "image_url"] * 12, "text"]  # 4 frames of 2 s and 8 of 4 s
    assert "media_io_kwargs" not in body


def test_a_medium_is_read_once_for_all_rollouts_of_a_prompt(make_clip, monkeypatch):
    reads = []
    real = sent_media.element_parts
    monkeypatch.setattr(sent_media, "element_parts", lambda element, **k: reads.append(element) or real(element, **k))
    clip = video(make_clip(16, 4))
    _, bodies = asked(*(request(clip, observation=f"Brightness {i}.") for i in range(6)))
    assert (len(bodies), len(reads)) == (6, 1)
    assert len({json.dumps(body["messages"][0]["content"][0]) for body in bodies}) == 1


def test_what_the_cache_of_verdicts_tells_apart(make_clip, tmp_path):
    clip = tmp_path / "a.mp4"
    clip.write_bytes(make_clip(16, 4).read_bytes())
    file = {"cache_file": str(tmp_path / "v.sqlite")}

    def calls(*requests, **options):
        return len(asked(*requests, **file, **options)[1])

    one = request(video(clip))
    assert calls(one, one) == 1
    assert calls(one) == 0
    assert calls(dataclasses.replace(one, observation="It gets darker.")) == 1
    assert calls(request(video(clip, fps=1.0))) == 1  # other frames
    assert calls(request(video(clip), video(clip))) == 1
    assert calls(one, video_as="images") == calls(one, reply="single_token") == calls(one, patch_size=16) == 1
    os.utime(clip, ns=(0, 0))  # another file under the same name
    assert calls(one) == 1


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        ((), NOTHING_TO_SEE),
        (({"type": "video", "video": "/no/such/clip.mp4"},), "the medium cannot be shown: .*/no/such/clip.mp4"),
        (({"type": "image", "image": b"not a picture"},), "the medium cannot be shown: "),
        (({"type": "video", "video": "a.mp4", "fps": -1.0},), "the medium cannot be shown: .*fps"),
    ],
)
def test_a_row_that_cannot_be_shown_gets_no_verdict_and_no_request(media, reason):
    (verdict,), bodies = asked(request(*media))
    assert verdict.value is None
    assert re.search(reason, verdict.reason), verdict.reason
    assert bodies == []


def test_verdicts_follow_what_the_frames_show(judge_server, tmp_path):
    Image.new("RGB", (112, 112), (40, 70, 230)).save(tmp_path / "blue.png")
    judge = get_judge("visual", model="judge", base_urls=judge_server.base_url)
    media = ({"type": "image", "image": str(tmp_path / "blue.png")},)

    async def main():
        requests = [request(*media, observation=f"A plain {colour} picture.") for colour in ("blue", "red")]
        verdicts = await asyncio.gather(*map(judge.judge, requests))
        await check_judge(judge, "visual")  # whose two questions are about another picture
        await judge.aclose()
        return [verdict.value for verdict in verdicts]

    assert asyncio.run(main()) == [True, False]
    assert len(judge_server.calls()) == 4


def test_the_prompts_differ_in_what_they_ask_the_model_to_write():
    explained, single = default_template("judge_visual"), default_template("judge_visual_single_token")
    head, _, tail = explained.rpartition("\n\n")
    assert single == f"{head}\n\nReply with one word and nothing else: Yes or No.\n"
    text = default_template()
    marked = slice(text.index("=== QUESTION"), text.index("Can a careful reader"))
    assert text[marked] in explained  # the same markers around the same texts
    assert tail.endswith("<judgement>Yes</judgement>\nor\n<judgement>No</judgement>\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video_as": "frames"}, "video_as is 'frames': use one of video, images"),
        ({"patch_size": 0}, "patch_size is 0: give a whole number above 0"),
        ({"media_kept": 0}, "media_kept is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"colour": 1}, r"does not fit judge 'visual'.*unexpected keyword argument 'colour'; it takes .*temperature"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_judge("visual", model="m", base_urls="http://a/v1", **options)


def test_the_options_of_the_base_count_as_its_own():
    options = signature_of(VisualJudge).parameters
    assert {"model", "video_as", "frame_cache", "reply", "cache_file"} <= set(options)
    assert "options" not in options
    assert options["max_tokens"].default == 512


def test_media_of_several_event_loops(make_clip):
    """As in a process that checks the judge in one loop and trains in another."""
    media = sent_media.SentMedia("video", 14, 4, None)
    element = video(make_clip(8, 4))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: asyncio.run(media.parts([element])), range(2))
    assert first == second
    missing = video(Path("/no/such.mp4"))
    with pytest.raises(MediaError, match="no such file"):
        asyncio.run(media.parts([missing]))
