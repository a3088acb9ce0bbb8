# SPDX-License-Identifier: Apache-2.0
"""M-RoPE positions against the definition, in exact fractions."""

import random
from fractions import Fraction
from math import floor

import pytest
import torch
from mrope_reference import ids_of, true_positions

from verl_p2r.media.positions import guarded_seconds_per_grid, mrope_positions

IMAGE, VIDEO = 8, 9
STILL = Fraction(1)

# Frames per second of the sampled frames: round numbers, tenths, thirds, sevenths, and television's 1000/1001.
RATES = sorted(
    {Fraction(n, d) for d in (1, 2, 3, 7, 10) for n in range(1, 30 * d + 1) if Fraction(n, d) >= Fraction(1, 2)}
    | {Fraction(n * 1000, 1001 * d) for n in (24, 30, 60) for d in (1, 2, 3, 5, 12)}
)


def positions_of(parts, kinds: str, steps: list[float] | None = None) -> list[tuple[int, ...]]:
    media = [part for part in parts if not isinstance(part, int)]
    positions = mrope_positions(
        torch.tensor(ids_of(parts, kinds, image=IMAGE, video=VIDEO)),
        [(t, 2 * h, 2 * w) for t, h, w, _ in media],
        [float(step) for *_, step in media] if steps is None else steps,
        placeholder_ids=[IMAGE, VIDEO],
    )
    return list(map(tuple, positions.T.tolist()))


def test_time_axis_is_the_floor_of_true_seconds_at_every_frame_rate():
    # Seconds pass through float32, as the processor hands them over. 48 grids are 96 frames.
    grids = 48
    for fps in RATES:
        for tokens_per_second in (1, 2, 25):
            seconds = Fraction(2) / fps
            through_float32 = float(torch.tensor(float(seconds), dtype=torch.float32))
            got = mrope_positions(
                torch.full((grids,), VIDEO),
                [(grids, 2, 2)],
                [guarded_seconds_per_grid(through_float32) * tokens_per_second],
                placeholder_ids=[IMAGE, VIDEO],
            )[0]
            assert got.tolist() == [floor(t * seconds * tokens_per_second) for t in range(grids)], (
                fps,
                tokens_per_second,
            )


def test_float32_seconds_without_guard_shift_positions():
    # 2 / 3 s is 0.66666669 in float32 and safe; 0.7 s (20/7 fps) is 0.69999999: grid 5 falls from 7 to 6.
    seconds = float(torch.tensor(0.7))
    assert floor(5 * seconds * 2) == 6
    assert floor(5 * guarded_seconds_per_grid(seconds) * 2) == 7


def test_rounding_guard_is_smaller_than_gap_between_frame_rates():
    # A clip of 768 frames at 23.976 against 24 fps: the guard is four orders of magnitude smaller than their distance.
    film, cinema = 2 / (24000 / 1001), 2 / 24
    assert guarded_seconds_per_grid(cinema) - cinema < (film - cinema) / 1000


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        ([7], ""),
        ([(1, 3, 5, STILL)], "i"),
        ([2, (1, 3, 5, STILL), 4], "i"),
        ([2, (4, 2, 3, Fraction(2)), 4], "v"),
        ([(4, 2, 3, Fraction(1, 6)), 1, (4, 2, 3, Fraction(4))], "vv"),
        (
            [3, (1, 4, 2, STILL), 1, (5, 2, 2, Fraction(8, 3)), 1, (1, 2, 2, STILL), 2, (2, 2, 2, Fraction(1, 2)), 9],
            "iviv",
        ),
    ],
    ids=["text", "image", "image-in-text", "video", "two-videos", "alternating"],
)
def test_positions_of_mixed_prompts_match_definition(parts, kinds):
    assert positions_of(parts, kinds) == true_positions(parts)


def test_text_after_video_starts_past_its_largest_axis():
    # Four grids 2 apart start at 1: times 1, 3, 5, 7. The picture is 1 x 1, so the text after it starts at 8.
    assert positions_of([1, (4, 1, 1, Fraction(2)), 1], "v")[-1] == (8, 8, 8)
    # A short flat video: one grid, 2 x 6 patches, widths 1 … 6. The text starts at 7, past the width and not the time.
    assert positions_of([1, (1, 2, 6, Fraction(2)), 1], "v")[-1] == (7, 7, 7)


def test_positions_of_random_mixed_prompts_match_definition():
    rng = random.Random(0)
    for _ in range(200):
        parts, kinds = [rng.randrange(4)], ""
        for _ in range(rng.randrange(5)):
            h, w = rng.randint(1, 5), rng.randint(1, 5)
            if rng.random() < 0.5:
                parts.append((1, h, w, STILL))
                kinds += "i"
            else:
                step = 2 * Fraction(2) / rng.choice(RATES)
                parts.append((rng.randint(1, 12), h, w, step))
                kinds += "v"
            parts.append(rng.randint(1, 6))
        steps = [
            guarded_seconds_per_grid(float(torch.tensor(float(p[3] / 2)))) * 2 for p in parts if not isinstance(p, int)
        ]
        assert positions_of(parts, kinds, steps) == true_positions(parts)


def test_response_placeholders_get_text_positions():
    parts = [2, (2, 2, 2, Fraction(2)), 3]
    ids = [*ids_of(parts, "v", image=IMAGE, video=VIDEO), VIDEO, VIDEO, 5, IMAGE]
    got = mrope_positions(torch.tensor(ids), [(2, 4, 4)], [2.0], placeholder_ids=[IMAGE, VIDEO])
    assert list(map(tuple, got.T.tolist())) == true_positions([*parts, 4])


@pytest.mark.parametrize(
    "ids",
    [
        [5, 9, 9, 9],  # cut inside the medium
        [5, 5, 5],  # no placeholder at all
        [5, 9, 9, 5, 9, 9],  # text inside the medium
        [],
    ],
)
def test_medium_without_matching_placeholder_run_is_an_error(ids):
    with pytest.raises(ValueError, match=r"medium 0 .* 4 placeholder"):
        mrope_positions(torch.tensor(ids, dtype=torch.long), [(1, 4, 4)], [1.0], placeholder_ids=[IMAGE, VIDEO])


def test_placeholder_error_names_truncated_medium():
    ids = torch.tensor([9] * 4 + [5] + [9] * 3)
    with pytest.raises(ValueError, match="medium 1 has a grid of 1x2x2"):
        mrope_positions(ids, [(1, 4, 4)] * 2, [1.0] * 2, placeholder_ids=[IMAGE, VIDEO])


def test_grids_and_time_steps_must_have_equal_length():
    with pytest.raises(ValueError):
        mrope_positions(torch.tensor([9, 9, 9, 9]), [(1, 4, 4)], [], placeholder_ids=[9])
