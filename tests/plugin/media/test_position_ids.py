# SPDX-License-Identifier: Apache-2.0
"""The trainer's positions from a real processor on real clips: equal to the truth; verl's stock ones are not."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import qwen_models
import torch
from clip_prompts import SAMPLES, TEXT, encode, layout_of, medium, parts_of, video
from mrope_reference import true_positions
from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils import hf_processor

from verl_p2r.plugin.media.agent_loop import P2RAgentLoopWorker
from verl_p2r.plugin.media.position_ids import qwen_position_ids


def assert_true(processor, ids: torch.Tensor, inputs: dict, media: list) -> None:
    positions = qwen_position_ids(processor, ids, inputs)
    assert positions.shape == (4, len(ids))
    assert positions[0].tolist() == list(range(len(ids)))
    assert list(map(tuple, positions[1:].T.tolist())) == true_positions(parts_of(processor, ids, media))


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_video_positions_follow_true_seconds(processor, clips, sample):
    ids, inputs = encode(processor, [video(clips, sample), {"type": "text", "text": "What moves?"}])
    assert inputs["second_per_grid_ts"][0].item() == pytest.approx(float(Fraction(2) / sample[3]), rel=1e-7)
    assert_true(processor, ids, inputs, [medium(sample)])


def test_positions_of_interleaved_images_and_videos_are_true(processor, clips):
    image = {"type": "image", "image": Image.new("RGB", (112, 112))}
    content = [image, video(clips, SAMPLES[4]), image, {"type": "text", "text": "and"}, video(clips, SAMPLES[8]), image]
    still = (1, 4, 4, Fraction(1))
    ids, inputs = encode(processor, [*content, {"type": "text", "text": "What moves?"}])
    assert_true(processor, ids, inputs, [still, medium(SAMPLES[4]), still, medium(SAMPLES[8]), still])


def test_text_only_positions_count_up(processor):
    ids, inputs = encode(processor, [{"type": "text", "text": "What moves?"}])
    assert_true(processor, ids, inputs, [])


def test_trainer_gives_response_placeholders_text_positions(processor, clips):
    ids, inputs = encode(processor, [video(clips, SAMPLES[1])])
    ids = torch.cat([ids, torch.tensor([processor.video_token_id, TEXT, processor.image_token_id])])
    assert_true(processor, ids, inputs, [medium(SAMPLES[1])])


def test_prompt_truncated_at_a_medium_is_an_error(processor, clips):
    ids, inputs = encode(processor, [video(clips, SAMPLES[1]), video(clips, SAMPLES[4])])
    last = int((ids == processor.video_token_id).nonzero()[-1])
    with pytest.raises(ValueError, match="truncated inside a medium"):
        qwen_position_ids(processor, ids[:last], inputs)
    with pytest.raises(ValueError, match="placeholders for 1 media, but 2 were processed"):
        qwen_position_ids(processor, ids[: last - 40], inputs)


def test_video_without_second_per_grid_is_an_error(processor, clips):
    ids, inputs = encode(processor, [video(clips, SAMPLES[1])])
    inputs.pop("second_per_grid_ts")
    with pytest.raises(ValueError, match="second_per_grid_ts"):
        qwen_position_ids(processor, ids, inputs)


def test_positions_of_unknown_processors_are_left_to_verl():
    assert qwen_position_ids(object(), torch.tensor([1, 2]), {}) is None


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "qwen3_5"])
def other(request, tmp_path_factory):
    """Another family's processor, and how the family lays a sample out."""
    folder = qwen_models.save(tmp_path_factory.mktemp(request.param), request.param)
    layout = layout_of(request.param)
    return hf_processor(str(folder)), layout


def test_other_qwen_families_advance_one_position_per_grid(other, clips):
    processor, layout = other
    side = 8 * processor.image_processor.patch_size
    image = {"type": "image", "image": Image.new("RGB", (side, side))}
    content = [image, video(clips, SAMPLES[4]), {"type": "text", "text": "and"}, video(clips, SAMPLES[8]), image]
    still = [(1, 4, 4, Fraction(1))]
    ids, inputs = encode(processor, content)
    assert_true(processor, ids, inputs, [*still, *layout(SAMPLES[4]), *layout(SAMPLES[8]), *still])


def test_stock_verl_positions_fail_on_response_placeholder(other, clips):
    processor, layout = other
    ids, inputs = encode(processor, [video(clips, SAMPLES[1])])
    ids = torch.cat([ids, torch.tensor([TEXT, processor.video_token_id, TEXT])])
    assert_true(processor, ids, inputs, layout(SAMPLES[1]))
    with pytest.raises(StopIteration):
        AgentLoopWorker._compute_position_ids(SimpleNamespace(processor=processor), *padded(ids, 0, 0), dict(inputs))


def padded(ids: torch.Tensor, left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A row of the agent loop's batch: ids and mask with padding on both sides."""
    input_ids = torch.nn.functional.pad(ids, (left, right))[None]
    mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))[None]
    return input_ids, mask


def our_worker(processor) -> P2RAgentLoopWorker:
    worker = object.__new__(P2RAgentLoopWorker)
    worker.processor = processor
    return worker


def test_the_agent_loop_pads_around_the_true_positions(processor, clips):
    ids, inputs = encode(processor, [video(clips, SAMPLES[8])])
    got = our_worker(processor)._compute_position_ids(*padded(ids, 3, 2), dict(inputs))
    assert got.shape == (1, 4, len(ids) + 5)
    assert torch.equal(got[0, :, 3:-2], qwen_position_ids(processor, ids, inputs))
    assert bool((got[0, :, :3] == 1).all() and (got[0, :, -2:] == 1).all())


def test_agent_loop_positions_of_text_models_equal_verl(processor):
    ids, mask = padded(torch.arange(5), 2, 1)
    got = our_worker(None)._compute_position_ids(ids, mask, {})
    assert np.array_equal(got, AgentLoopWorker._compute_position_ids(our_worker(None), ids, mask, {}))


def test_stock_verl_positions_are_wrong_for_most_videos(processor, clips):
    # Stock: every grid one second after the last, and the text goes on behind the picture's width, not its time. That
    # is true only of a video at one second per grid and no longer than its picture is wide: two grids of 4 x 4.
    right = []
    for sample in SAMPLES:
        ids, inputs = encode(processor, [video(clips, sample)])
        stock = AgentLoopWorker._compute_position_ids(
            SimpleNamespace(processor=processor), *padded(ids, 0, 0), dict(inputs)
        )[0]
        ours = qwen_position_ids(processor, ids, inputs)
        assert torch.equal(stock[:, :5], ours[:, :5])  # the text before the video
        right += [sample] * torch.equal(stock, ours)
    assert right == [("quick", {"fps": 2.0}, 4, Fraction(2))]
