# SPDX-License-Identifier: Apache-2.0
"""The rollout's positions, by vLLM's own code: equal to the trainer's and to the truth; stock vLLM's are not.

Holds as it is for the versions of verl's CUDA stack, whose Python code runs without a GPU: unpack the wheels of vllm
0.24.0 and transformers 5.9.0 into two folders and name both in PYTHONPATH.
"""

import json
import os
import re
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import qwen_models
import rollout_positions
import torch
from clip_prompts import SAMPLES, TEXT, encode, layout_of, media_of, medium, parts_of, stills, timestamps, video
from mrope_reference import true_positions
from PIL import Image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from verl.utils import hf_processor
from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

from verl_p2r.plugin.media import grid_spans, vllm_video
from verl_p2r.plugin.media.position_ids import qwen_position_ids

SECONDS, TEXTS = "verl_p2r.plugin.media.vllm_seconds", "verl_p2r.plugin.media.vllm_timestamps"


@pytest.fixture(scope="module")
def plugins():
    """vLLM's own loading of its plugins: the entry point `vllm.general_plugins` is part of what is tested."""
    from vllm.plugins import load_general_plugins

    load_general_plugins()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def rollout(request, plugins, tiny_model):
    """vLLM's processor for the tiny model."""
    made = rollout_positions.vllm_processor(str(tiny_model), request.param)
    assert type(made).__module__ == SECONDS
    return made


def sent(processor, content: list[dict]) -> tuple[list[int], dict[str, list]]:
    """Prompt ids and `multi_modal_data` as verl's vLLM server passes them."""
    ids, _ = encode(processor, content)
    images, videos = media_of(content, processor.image_processor.patch_size)
    media = {name: given for name, given in (("image", images), ("video", videos)) if given}
    return qwen2_5_vl_dedup_image_tokens(ids.tolist(), processor), media


def assert_both_sides_true(rollout, processor, content: list[dict], media: list) -> None:
    ids, inputs = encode(processor, content)
    output = rollout_positions.process(rollout, *sent(processor, content))
    assert output["prompt_token_ids"] == ids.tolist()
    theirs = rollout_positions.positions(rollout, output)
    assert torch.equal(theirs, qwen_position_ids(processor, ids, inputs)[1:])
    assert list(map(tuple, theirs.T.tolist())) == true_positions(parts_of(processor, ids, media))


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_rollout_and_trainer_positions_equal_truth(rollout, processor, clips, sample):
    content = [video(clips, sample), {"type": "text", "text": "What moves?"}]
    assert_both_sides_true(rollout, processor, content, [medium(sample)])


# Beside the clips above, the ends of the range and odd rates between: all frames of a clip.
EXTREMES = [(10, Fraction(1, 2)), (12, Fraction(3, 4)), (30, 25), (32, 30), (32, Fraction(30000, 1001))]


@pytest.mark.parametrize(("frames", "rate"), EXTREMES, ids=str)
def test_rollout_and_trainer_agree_at_extreme_frame_rates(rollout, processor, make_clip, frames, rate):
    sample = ("clip", {"nframes": frames}, frames, Fraction(rate))
    content = [video({"clip": make_clip(frames, rate)}, sample), {"type": "text", "text": "What moves?"}]
    assert_both_sides_true(rollout, processor, content, [medium(sample)])


def test_rollout_and_trainer_agree_on_interleaved_images_and_videos(rollout, processor, clips):
    image = {"type": "image", "image": Image.new("RGB", (112, 112))}
    content = [video(clips, SAMPLES[8]), image, {"type": "text", "text": "and"}, video(clips, SAMPLES[4]), image]
    still = (1, 4, 4, Fraction(1))
    assert_both_sides_true(rollout, processor, content, [medium(SAMPLES[8]), still, medium(SAMPLES[4]), still])


def test_seconds_per_grid_keep_precision_in_every_dtype(rollout, processor, clips):
    # 16 frames at 16000/1001 fps: 0.125125 s per grid, in bfloat16 0.125.
    output = rollout_positions.process(rollout, *sent(processor, [video(clips, SAMPLES[7])]))
    (seconds,) = rollout_positions.seconds_per_grid(output)
    assert seconds == pytest.approx(2 * 1001 / 16000, rel=2e-7)


@pytest.mark.parametrize("given", [torch.zeros(4, 3, 112, 112), (torch.zeros(4, 3, 112, 112), None)])
def test_a_video_without_metadata_counts_as_24_fps_as_in_stock_vllm(rollout, processor, given):
    prompt = [TEXT, processor.video_token_id, TEXT]
    output = rollout_positions.process(rollout, prompt, {"video": [given]})
    assert rollout_positions.seconds_per_grid(output) == pytest.approx([2 / 24])


def test_metadata_of_vllm_video_loader_is_read(rollout, processor):
    # Its fields go beyond what transformers knows.
    metadata = {"total_num_frames": 8, "fps": 4.0, "duration": 2.0, "video_backend": "opencv", "frames_indices": [0, 7]}
    given = (torch.zeros(2, 3, 112, 112), {**metadata, "do_sample_frames": True})
    output = rollout_positions.process(rollout, [TEXT, processor.video_token_id], {"video": [given]})
    assert rollout_positions.seconds_per_grid(output) == pytest.approx([2.0])  # 2 of 8 frames at 4 fps are 1 fps


def test_processor_kwargs_from_data_config_are_accepted(rollout, processor, clips):
    plain = rollout_positions.process(rollout, *sent(processor, [video(clips, SAMPLES[1])]))
    given = rollout_positions.process(rollout, *sent(processor, [video(clips, SAMPLES[1])]), do_sample_frames=False)
    assert given["prompt_token_ids"] == plain["prompt_token_ids"]
    assert rollout_positions.seconds_per_grid(given) == rollout_positions.seconds_per_grid(plain)


def test_image_only_and_text_only_prompts_still_work(rollout, processor):
    image = Image.new("RGB", (112, 112))
    output = rollout_positions.process(rollout, [TEXT, processor.image_token_id, TEXT], {"image": [image]})
    assert len(output["prompt_token_ids"]) == 18
    assert rollout_positions.process(rollout, [TEXT, TEXT], {})["prompt_token_ids"] == [TEXT, TEXT]


def test_same_pixels_with_other_times_are_cached_separately(plugins, processor, tiny_model):
    cached = rollout_positions.vllm_processor(str(tiny_model), "float32", cached=True)
    pixels = torch.zeros(4, 3, 112, 112)
    seen = {}
    for fps in (4.0, 1.0, 4.0):
        metadata = {"fps": fps, "frames_indices": [0, 2, 5, 7], "total_num_frames": 8}
        prompt = [TEXT, processor.video_token_id]
        output = rollout_positions.process(cached, prompt, {"video": [(pixels, metadata)]})
        assert rollout_positions.seconds_per_grid(output) == pytest.approx([2 / (fps / 2)])
        (digest,) = output["mm_hashes"]["video"]
        assert seen.setdefault(fps, digest) == digest  # the third finds the first
    assert seen[4.0] != seen[1.0]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "qwen3_5"])
def other(request, plugins, tmp_path_factory):
    """Another family's processors: vLLM's, verl's, and how the family lays a sample out."""
    folder = qwen_models.save(tmp_path_factory.mktemp(request.param), request.param)
    layout = layout_of(request.param)
    return rollout_positions.vllm_processor(str(folder), "bfloat16"), hf_processor(str(folder)), layout


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen3_5"])
def qwen3(request, plugins, tmp_path_factory):
    """vLLM's and verl's processors for Qwen3-VL and Qwen3.5."""
    folder = qwen_models.save(tmp_path_factory.mktemp("qwen3"), request.param)
    made = rollout_positions.vllm_processor(str(folder), "bfloat16")
    assert type(made).__module__ == TEXTS
    return made, hf_processor(str(folder))


@pytest.mark.parametrize("sample", [*SAMPLES, ("quick", {"nframes": 2}, 2, Fraction(1))], ids=str)
def test_rollout_and_trainer_agree_for_other_qwen_families(other, clips, sample):
    rollout, processor, layout = other
    content = [video(clips, sample), {"type": "text", "text": "What moves?"}]
    assert_both_sides_true(rollout, processor, content, layout(sample))


def test_a_rollout_processor_leaves_transformers_configs_in_place(other):
    assert all(CONFIG_MAPPING[f"qwen{name}"].__module__.startswith("transformers.") for name in ("2_vl", "3_vl", "3_5"))


def test_other_qwen_families_agree_on_interleaved_images_and_videos(other, clips):
    rollout, processor, layout = other
    side = 8 * processor.image_processor.patch_size
    image = {"type": "image", "image": Image.new("RGB", (side, side))}
    # Text that could melt into a timestamp behind it, and the same video twice.
    content = [image, video(clips, SAMPLES[8]), {"type": "text", "text": "and <"}, video(clips, SAMPLES[4]), image]
    content += [{"type": "text", "text": "then <1.0 seconds>: "}, video(clips, SAMPLES[8])]
    still, first, second = [(1, 4, 4, Fraction(1))], layout(SAMPLES[8]), layout(SAMPLES[4])
    assert_both_sides_true(rollout, processor, content, [*still, *first, *second, *still, *first])


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_qwen3_writes_the_true_time_before_each_grid(qwen3, clips, sample):
    _, processor = qwen3
    ids, _ = encode(processor, [video(clips, sample)])
    text = processor.tokenizer.decode(ids)
    assert re.findall(r"<\d+\.\d seconds>(?=<.vision_start.><.video_pad.>)", text) == timestamps(clips, sample)
    assert text.count(" seconds>") == sample[2] // 2


@pytest.mark.parametrize(("frames", "rate"), EXTREMES, ids=str)
def test_qwen3_agrees_from_half_a_frame_to_thirty_a_second(qwen3, make_clip, frames, rate):
    rollout, processor = qwen3
    clips, sample = {"clip": make_clip(frames, rate)}, ("clip", {"nframes": frames}, frames, Fraction(rate))
    content = [video(clips, sample)]
    assert_both_sides_true(rollout, processor, content, stills(sample))
    text = processor.tokenizer.decode(encode(processor, content)[0])
    assert re.findall(r"<\d+\.\d seconds>", text) == timestamps(clips, sample)


def test_stock_vllm_writes_a_qwen3_video_twice(qwen3, clips, monkeypatch):
    rollout, processor = qwen3
    content = [video(clips, SAMPLES[1])]  # two grids
    monkeypatch.setattr(grid_spans, "has_timestamps", lambda *_: False)  # what is left is vLLM's own
    output = rollout_positions.process(rollout, *sent(processor, content))
    first, second = timestamps(clips, SAMPLES[1])
    seen = re.findall(r"<\d\.\d seconds>", processor.tokenizer.decode(output["prompt_token_ids"]))
    assert seen == [first, first, second, second]


def test_a_qwen3_prompt_with_one_placeholder_a_video_is_vllms(qwen3, clips):
    # As another client of the server may send it.
    rollout, processor = qwen3
    content = [video(clips, SAMPLES[1])]
    ids, _ = encode(processor, content)
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    output = rollout_positions.process(rollout, processor.tokenizer(text)["input_ids"], sent(processor, content)[1])
    assert output["prompt_token_ids"] == ids.tolist()


def test_a_qwen3_prompt_with_other_grids_than_its_video_is_an_error(qwen3, clips):
    rollout, processor = qwen3
    ids, _ = sent(processor, [video(clips, SAMPLES[1])])
    _, media = sent(processor, [video(clips, SAMPLES[2])])
    with pytest.raises(ValueError, match=r"holds 2 temporal grids of video, but its videos have \[4\]"):
        rollout_positions.process(rollout, ids, media)


def test_qwen3_vl_moe_uses_our_processor(plugins):
    from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeProcessingInfo

    factory = Qwen3VLMoeForConditionalGeneration._processor_factory
    assert factory.processor.__module__ == TEXTS
    assert factory.info is Qwen3VLMoeProcessingInfo


@pytest.mark.parametrize("pads", [1, 3], ids=["collapsed by verl", "not collapsed"])
def test_videos_are_cut_out_of_hand_made_prompt(pads):
    # 1 text, 2 and 3 vision start and end, 7 a timestamp, 9 the placeholder: two videos, of two grids and of one, each
    # grid of three tokens. The second stands inside outer markers, as transformers 5.10 leaves them.
    short, grid = [9] * pads, [2, 9, 9, 9, 3]
    prompt = [1, 7, 2, *short, 3, 7, 2, *short, 3, 1, 2, 7, 2, *short, 3, 3, 1]
    twice, once = [7, *grid, 7, *grid], [7, *grid]
    rest, spans = grid_spans.cut_out_videos(prompt, [twice, once], 9)
    assert rest == [1, 7, 9, 1, 2, 7, 9, 3, 1]
    assert spans == [[*grid, 7, *grid], grid]


@pytest.mark.slow
def test_stock_vllm_loses_the_frame_rate(tiny_model):
    # A fresh process in which vLLM may load our platform but not this plugin. The video is at 2 fps.
    script = Path(rollout_positions.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_model)],
        env={**os.environ, "VLLM_PLUGINS": "verl_p2r_cpu", "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stock = json.loads(done.stdout.splitlines()[-1])
    assert stock["seconds"] == pytest.approx([2 / 24], rel=1e-3)
    # Both temporal grids of the video fall on position 1, and the text follows at 1 + 4; the truth is 1 and 3.
    truth = [time for time, _, _ in true_positions([1, (2, 4, 4, Fraction(2)), 1])]
    assert stock["time"] == [0] + [1] * 32 + [5]
    assert truth == [0] + [1] * 16 + [3] * 16 + [5]


ALL = {"qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"}


@pytest.mark.parametrize(
    ("version", "installed", "left_with_a_warning"),
    [
        *[(version, ALL, set()) for version in ("0.24.0", "0.27.1+cpu", "0.28.3", "0.28.1.dev3+g12ab")],
        *[(version, set(), ALL) for version in ("0.23.1", "0.29.0rc1", "0.30.0", "dev")],
        *[(version, set(), ALL - {"qwen2_5_vl"}) for version in ("0.31.0rc1", "0.32.0+cpu", "1.0.0")],
    ],
)
def test_vllm_repair_is_installed_only_in_versions_it_fits(monkeypatch, version, installed, left_with_a_warning):
    import vllm

    hooks, acted = {}, set()
    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(vllm_video, "_install", lambda repair, prefix, models: acted.add(models.__name__))
    monkeypatch.setattr(vllm_video, "register_post_import_hook", lambda hook, door: hooks.update({door: hook}))
    vllm_video.register()
    warned = set()
    for door, hook in hooks.items():
        name = door.removeprefix("vllm.model_executor.models.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hook(ModuleType(name))
        for warning in caught:
            warned.add(name)
            assert f"of vLLM {version} as it is" in str(warning.message)
            assert "fits vLLM >=0.24,<0.29 only" in str(warning.message)
    assert (acted, warned) == (installed, left_with_a_warning)


@pytest.mark.parametrize("version", ["0.27.1", "0.31.0"])
def test_vllm_plugin_starts_shm_tracker_in_any_version(monkeypatch, version):
    import vllm

    started = []
    monkeypatch.setattr("verl_p2r.plugin.shm_tracker.start", lambda: started.append(True))
    monkeypatch.setattr(vllm_video, "register_post_import_hook", lambda *args: None)
    monkeypatch.setattr(vllm, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        vllm_video.register()
    assert started == [True]
