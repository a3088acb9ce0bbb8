# SPDX-License-Identifier: Apache-2.0
"""Bad rows of RL are left out or stop the run, by name; over-long prompts are measured as the processor makes them."""

import json

import pytest
from rl_rows import image_row, length_of, loader, rl_row
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_p2r.data import screening


@pytest.fixture
def load(tmp_path, processor):
    return loader(tmp_path, processor)


BAD = {
    "unknown-type": ({"problem_type": "essay"}, "field problem_type is 'essay'", "give one of multiple choice"),
    "no-type": ({"problem_type": None}, "field problem_type is None", "give one of multiple choice"),
    "no-truth": ({"reward_model": {"style": "rule", "ground_truth": None}}, "field reward_model.ground_truth", "drop"),
    "no-media": (
        {"videos": None, "prompt": [{"role": "user", "content": "What moves?"}]},
        "fields images and videos are empty",
        "drop text-only rows",
    ),
    "no-placeholder": (
        {"prompt": [{"role": "user", "content": "What moves?"}]},
        "field prompt holds 0 <video> but the row has 1",
        "write one placeholder per medium",
    ),
    "two-placeholders": (
        {"prompt": [{"role": "user", "content": "<video><video>What moves?"}]},
        "field prompt holds 2 <video> but the row has 1",
        "write one placeholder per medium",
    ),
    "image-placeholder": (
        {"prompt": [{"role": "user", "content": "<video><image>What moves?"}]},
        "field prompt holds 1 <image> but the row has 0",
        "write one placeholder per medium",
    ),
    "missing-video": (
        {"videos": [{"video": "/nowhere/a.mp4", "fps": 2.0}]},
        "field videos: /nowhere/a.mp4: no such file",
        "local",
    ),
    "no-path": (
        {"videos": [{"vidoe": "a.mp4", "fps": 2.0}]},
        "field videos holds {'fps': 2.0, 'vidoe': 'a.mp4'}",
        "without a path in 'video'",
    ),
    "missing-image": (
        {"images": [{"image": "/nowhere/a.png"}], "prompt": [{"role": "user", "content": "<video><image>What?"}]},
        "field images: /nowhere/a.png: cannot be opened",
        "No such file",
    ),
}


@pytest.mark.parametrize("filtered", [False, True], ids=["", "filtered"])
@pytest.mark.parametrize(("changes", "field", "remedy"), BAD.values(), ids=list(BAD))
def test_bad_rl_row_error_names_file_row_field_and_remedy(load, clips, tmp_path, changes, field, remedy, filtered):
    # With the filter of long prompts on, verl alone drops a row it cannot process, and goes on.
    clip = str(clips["quick"])
    good = [rl_row(clip, i) for i in range(3)]
    bad = [rl_row(clip, 70), rl_row(clip, 71, **changes)]
    with pytest.raises(ValueError) as caught:
        load(good, bad, good, filter_overlong_prompts=filtered, filter_overlong_prompts_workers=None)
    message = str(caught.value)
    assert message.startswith("1 of 8 rows rejected (")
    assert f"{tmp_path}/rl1.parquet row 1: {field}" in message
    assert remedy in message


def test_all_rows_of_unreadable_video_are_rejected_not_replaced(load, clips, tmp_path):
    # A peer swaps a bad video for a fixed one and keeps the question.
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    rows = [rl_row(clips["quick"], 0), *(rl_row(tmp_path / "page.mp4", i) for i in (1, 2)), rl_row(clips["odd"], 3)]
    with pytest.raises(ValueError, match=r"^2 of 4 rows rejected \(unreadable file 2\)") as caught:
        load(rows)
    assert f"rl0.parquet row 1: field videos: {tmp_path}/page.mp4: cannot be" in str(caught.value)
    dataset = load(rows, p2r={"max_reject_share": 0.5})
    assert [row["extra_info"]["index"] for row in dataset] == [0, 3]
    assert [row["raw_prompt"][0]["content"][0]["video"] for row in dataset] == [str(clips["quick"]), str(clips["odd"])]


def test_unsatisfiable_sampling_rules_are_found_before_run(load, clips):
    clip = str(clips["quick"])
    rules = [{"fps": 2.0, "nframes": None}, {"fps": None, "nframes": 40}, {"fps": 2.0, "nframes": 4}]
    with pytest.raises(ValueError) as caught:
        load([rl_row(clip, i, videos=[{"video": clip, **rule}]) for i, rule in enumerate(rules)])
    head, first, second, _ = str(caught.value).splitlines()
    assert head == "2 of 3 rows rejected (sampling rules 2)"
    assert f"rl0.parquet row 1: field videos: {clip}: its sampling rules cannot be met: nframes should" in first
    assert f"rl0.parquet row 2: field videos: {clip}: its sampling rules cannot be met: Only accept either" in second


def test_media_paths_given_as_text_are_checked(load, clips):
    load([rl_row("", 0, videos=[str(clips["quick"])]), rl_row("", 1, videos=[f"file://{clips['odd']}"])])
    with pytest.raises(ValueError, match=r"row 0: field videos: /nowhere/a\.mp4: no such file"):
        load([rl_row("", 0, videos=["/nowhere/a.mp4"])])


def test_rejects_are_counted_by_reason_and_first_ones_shown(load, clips):
    rows = [rl_row(clips["quick"], i, problem_type="essay") for i in range(9)]
    with pytest.raises(ValueError) as caught:
        load([*rows, rl_row("/nowhere/a.mp4", 9)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "10 of 10 rows rejected (unknown problem type 9, missing file 1)"
    assert lines[6] == "  … and 5 more"
    assert lines[7].startswith("That is more than data.p2r.max_reject_share=0.01: repair the data")
    assert len(lines) == 8


@pytest.mark.parametrize("shuffle", [False, True])
def test_rl_rows_drawn_by_max_samples_keep_file_and_row(load, clips, tmp_path, shuffle):
    files = [[rl_row(clips["quick"], i, problem_type=f"essay {f}.{i}") for i in range(3)] for f in range(2)]
    with pytest.raises(ValueError) as caught:
        load(*files, max_samples=4, shuffle=shuffle, seed=0)
    shown = str(caught.value).splitlines()[1:-1]
    assert len(shown) == 4
    for line in shown:
        place = line.split("'")[1].removeprefix("essay ").split(".")
        assert line.startswith(f"  {tmp_path}/rl{place[0]}.parquet row {place[1]}: field problem_type")


def test_over_long_limit_matches_processor_token_count_exactly(load, clips, image, processor):
    both = {"images": [{"image": image}], "prompt": [{"role": "user", "content": "<image>Then <video>what moves?"}]}
    rows = [rl_row(clips["quick"], 0), rl_row(clips["slow"], 1), image_row(image, 2), rl_row(clips["odd"], 3, **both)]
    lengths = [length_of(processor, row["raw_prompt"]) for row in load(rows)]
    assert len(set(lengths)) == 4
    for length in lengths:
        for limit in (length - 1, length):
            fits = [i for i in range(4) if lengths[i] <= limit]
            if not fits:
                continue
            dataset = load(rows, max_prompt_length=limit, p2r={"max_reject_share": 1})
            assert [row["extra_info"]["index"] for row in dataset] == fits


def test_rows_within_limit_equal_those_kept_by_verl_filter(load, clips):
    rows = [rl_row(clips[name], i) for i, name in enumerate(clips)]
    rows += [rl_row(clips["long"], 9, prompt=[{"role": "user", "content": "<video>" + "What moves? " * 9}])]
    stock = {"filter_overlong_prompts": True, "filter_overlong_prompts_workers": None}
    kept = {}
    for limit in (70, 90, 160):
        theirs = load(rows, cls=RLHFDataset, max_prompt_length=limit, **stock)
        kept[limit] = [row["extra_info"]["index"] for row in theirs]
        ours = load(rows, max_prompt_length=limit, p2r={"max_reject_share": 1})
        assert [row["extra_info"]["index"] for row in ours] == kept[limit]
    assert [len(indices) for indices in kept.values()] == [2, 5, 6]


def test_an_over_long_prompt_is_rejected_with_its_length(load, clips, processor):
    rows = [rl_row(clips["quick"], 0), rl_row(clips["slow"], 1)]
    long = length_of(processor, load(rows)[1]["raw_prompt"])
    with pytest.raises(ValueError, match=r"^1 of 2 rows rejected \(over-long 1\)") as caught:
        load(rows, max_prompt_length=long - 1)
    expected = (
        f"rl0.parquet row 1: its {long} tokens, 64 of them media, are more than data.max_prompt_length={long - 1}"
    )
    assert expected in str(caught.value)


def test_second_start_keeps_same_rows_without_opening_media(load, clips, tmp_path, monkeypatch):
    bad = rl_row(clips["quick"], 1, problem_type="essay")
    rows = [rl_row(clips["quick"], 0), bad, rl_row(clips["odd"], 2), rl_row(clips["slow"], 3)]
    p2r = {"screen_cache": str(tmp_path / "screenings"), "rejects_dir": str(tmp_path / "run"), "max_reject_share": 0.3}
    first = load(rows, p2r=p2r)
    monkeypatch.setattr(screening, "probe_element", None)
    again = load(rows, p2r=p2r, write=False)
    assert [row["extra_info"]["index"] for row in first] == [row["extra_info"]["index"] for row in again] == [0, 2, 3]
    (line,) = (tmp_path / "run" / "rejected_train.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert (reject["file"], reject["row"], reject["field"]) == (str(tmp_path / "rl0.parquet"), 1, "problem_type")
    assert reject["reason"] == "unknown problem type"


@pytest.mark.parametrize(
    "change",
    [
        {"max_prompt_length": 500},
        {"apply_chat_template_kwargs": {"enable_thinking": False}},
        {"mm_processor_kwargs": {"max_pixels": 50176, "min_pixels": 3136}},
        {"max_samples": 1},
        {"media": {"train": {"max_frames": 8}}},
        {"media_root": "/"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_changed_settings_are_screened_again(load, clips, tmp_path, change):
    own = {key: change[key] for key in ("media", "media_root") if key in change}
    rest = {key: value for key, value in change.items() if key not in own}
    rows = [rl_row(clips["quick"], 0), rl_row(clips["odd"], 1)]
    p2r = {"screen_cache": str(tmp_path / "screenings")}
    load(rows, p2r=p2r, max_prompt_length=400)
    load(rows, p2r=p2r, max_prompt_length=400, write=False)
    assert len(list((tmp_path / "screenings").iterdir())) == 1
    load(rows, p2r={**p2r, **own}, write=False, **{"max_prompt_length": 400, **rest})
    assert len(list((tmp_path / "screenings").iterdir())) == 2
