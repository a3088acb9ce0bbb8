# SPDX-License-Identifier: Apache-2.0
"""Media decoded once for all who ask at the same time, bounded in bytes, and never confused."""

import asyncio
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info

from verl_p2r.media import decode
from verl_p2r.media.plan import MediaError
from verl_p2r.plugin.media.media_cache import MediaCache, Source, cache_settings, sources_in

PLENTY = 1 << 30


def video(clip, **rules) -> Source:
    element = {"video": str(clip), "resized_height": 112, "resized_width": 112, **rules}
    return Source("video", json.dumps(element, sort_keys=True), 14)


@pytest.fixture
def decodes(monkeypatch) -> list[str]:
    """The files decoded, one entry for each time."""
    files: list[str] = []
    real = decode._decode

    def counted(file, *args):
        files.append(file.name)
        return real(file, *args)

    monkeypatch.setattr(decode, "_decode", counted)
    return files


async def ask(cache: MediaCache, *sources: Source) -> list:
    return await asyncio.gather(*map(cache.fetch, sources))


def test_cached_frames_equal_qwen_vl_utils_in_a_quarter_of_the_bytes(clips):
    source = video(clips["film"], nframes=6)
    [(frames, metadata)] = asyncio.run(ask(MediaCache(PLENTY), source))
    message = {"role": "user", "content": [{"type": "video", **json.loads(source.element)}]}
    _, [(expected, expected_metadata)] = process_vision_info([message], return_video_metadata=True)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames.float(), expected)
    assert frames.nbytes * 4 == expected.nbytes
    assert metadata == expected_metadata


def test_concurrent_requests_share_one_decode(clips, decodes):
    async def rollouts():
        cache = MediaCache(PLENTY)
        at_once = await ask(cache, *[video(clips["quick"])] * 8, video(clips["slow"]))
        return [*at_once, *await ask(cache, video(clips["quick"]))]

    media = asyncio.run(rollouts())
    assert sorted(decodes) == sorted([str(clips["quick"]), str(clips["slow"])])
    assert len({id(frames) for frames, _ in media}) == 2


def test_same_file_with_other_rules_is_decoded_separately(clips, decodes):
    four, eight = asyncio.run(ask(MediaCache(PLENTY), video(clips["quick"], fps=2.0), video(clips["quick"], fps=4.0)))
    assert (len(four[0]), len(eight[0])) == (4, 8)
    assert len(decodes) == 2


def test_media_cache_limit_is_in_bytes(clips, decodes):
    one = 4 * 3 * 112 * 112  # bytes of 4 frames

    async def passes():
        cache = MediaCache(2 * one)
        for name in ("quick", "slow", "quick", "odd", "quick", "slow"):  # the last "slow" was pushed out by "odd"
            await ask(cache, video(clips[name], nframes=4))

    asyncio.run(passes())
    assert [file.split("/")[-1] for file in decodes] == ["quick.mp4", "slow.mp4", "odd.mp4", "slow.mp4"]


def test_medium_larger_than_cache_limit_is_still_decoded(clips, decodes):
    async def twice():
        cache = MediaCache(1000)
        return [*await ask(cache, video(clips["quick"])), *await ask(cache, video(clips["quick"]))]

    assert len(asyncio.run(twice())) == len(decodes) == 2


def test_decode_failure_reaches_all_waiters_and_is_not_cached(tmp_path, clips):
    path = tmp_path / "late.mp4"

    async def early_and_late():
        cache = MediaCache(PLENTY)
        early = await asyncio.gather(*[cache.fetch(video(path))] * 1, cache.fetch(video(path)), return_exceptions=True)
        path.write_bytes(clips["quick"].read_bytes())
        return early, await ask(cache, video(path))

    early, [(frames, _)] = asyncio.run(early_and_late())
    assert [type(error) for error in early] == [MediaError, MediaError]
    assert len(frames) == 4


def test_cancelled_rollout_does_not_cancel_shared_decode(clips, decodes):
    async def one_gives_up():
        cache = MediaCache(PLENTY)
        first = asyncio.ensure_future(cache.fetch(video(clips["quick"])))
        second = asyncio.ensure_future(cache.fetch(video(clips["quick"])))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    frames, _ = asyncio.run(one_gives_up())
    assert len(frames) == 4
    assert len(decodes) == 1


def test_only_unmodified_cached_media_have_sources(clips, tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    image = Source("image", json.dumps({"image": str(tmp_path / "a.png")}), 14)

    async def both():
        cache = MediaCache(PLENTY)
        (frames, _), picture = await ask(cache, video(clips["quick"]), image)
        return cache, frames, picture

    cache, frames, picture = asyncio.run(both())
    assert cache.sources_of([frames, picture]) == (video(clips["quick"]), image)
    assert cache.sources_of([frames, picture.copy()]) is None
    assert cache.sources_of([frames.clone()]) is None
    picture.putpixel((0, 0), (255, 0, 0))  # a tool drew on it
    assert cache.sources_of([picture]) is None


def test_cached_images_are_handed_out_as_copies(tmp_path):
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    image = Source("image", json.dumps({"image": str(tmp_path / "a.png")}), 14)
    first, second = asyncio.run(ask(MediaCache(PLENTY), image, image))
    first.putpixel((0, 0), (255, 0, 0))
    assert second.getpixel((0, 0)) == (0, 0, 0)


def test_disk_cache_is_shared_between_epochs(clips, decodes, tmp_path):
    settings = cache_settings({"p2r": {"media_cache": {"directory": str(tmp_path), "disk_gib": 1.0}}})
    source = video(clips["odd"], nframes=6)
    (first, its_metadata), (second, metadata) = [
        asyncio.run(ask(MediaCache(0, settings.open_disk()), source))[0] for _ in range(2)
    ]
    assert torch.equal(first, second)
    assert metadata == its_metadata
    assert len(decodes) == 1


def test_sources_list_media_in_message_order():
    messages = [
        {"role": "system", "content": "Look first."},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "and"}]},
        {"role": "user", "content": [{"type": "video", "video": "b.mp4", "fps": 2.0}]},
    ]
    assert sources_in(messages, 16) == [
        Source("image", '{"image": "a.png"}', 16),
        Source("video", '{"fps": 2.0, "video": "b.mp4"}', 16),
    ]


def test_in_memory_media_and_frame_lists_have_sources(tmp_path):
    frames = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(frames):
        Image.new("RGB", (56, 56), (60 * i, 0, 0)).save(path)
    red = Image.new("RGB", (56, 56), "red")
    parts = [
        {"type": "image", "image": red},
        {"type": "image", "image": Path(frames[3]).read_bytes()},
        {"type": "video", "video": frames, "resized_height": 56, "resized_width": 56},
        {"type": "video", "video": [red, red.copy()], "resized_height": 56, "resized_width": 56},
    ]
    first, second, third, fourth = (
        source.decode() for source in sources_in([{"role": "user", "content": parts}], 14) or ()
    )
    assert first.getpixel((0, 0)) == (255, 0, 0)
    assert second.getpixel((0, 0)) == (180, 0, 0)
    assert [int(frame[0, 0, 0]) for frame in third[0]] == [0, 60, 120, 180]
    assert fourth[0].shape == (2, 3, 56, 56)


def test_a_file_in_memory_travels_as_its_bytes():
    file = io.BytesIO()
    Image.effect_noise((256, 256), 50).save(file, "PNG")
    data = file.getvalue()
    (source,) = (
        sources_in([{"role": "user", "content": [{"type": "image", "image": data, "max_pixels": 6272}]}], 14) or ()
    )
    assert source == Source("image", '{"image": null, "max_pixels": 6272}', 14, (data,))
    assert len(data) < len(pickle.dumps(source)) < len(data) + 1000
    assert pickle.loads(pickle.dumps(source)).decode().size == (56, 56)


def test_lists_of_frames_are_kept_on_disk_until_one_changes(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.new("RGB", (56, 56), "red").save(path)
    part = {"type": "video", "video": [str(path) for path in paths], "resized_height": 56, "resized_width": 56}
    (source,) = sources_in([{"role": "user", "content": [part]}], 14)
    disk = cache_settings({"p2r": {"media_cache": {"directory": str(tmp_path / "cache")}}}).open_disk()
    before, _ = source.decode(disk)
    assert torch.equal(source.decode(disk)[0], before)
    Image.new("RGB", (56, 56), "blue").save(paths[1])
    assert source.decode(disk)[0][1, :, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("part", [{"type": "image", "image": {"bytes": b"png"}}, {"type": "audio", "audio": "a.wav"}])
def test_non_canonical_media_element_has_no_source(part):
    assert sources_in([{"role": "user", "content": [part]}], 14) is None


def test_unknown_media_cache_setting_is_an_error():
    with pytest.raises(ValueError, match=r"data\.p2r\.media_cache\.memory_gb does not exist: did you mean memory_gib"):
        cache_settings({"p2r": {"media_cache": {"memory_gb": 1}}})
