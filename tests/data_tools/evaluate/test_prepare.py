# SPDX-License-Identifier: Apache-2.0
"""Official files, as downloads leave them, become records; what differs from the publication is named."""

import json

import benchmark_files
import pytest
from release_files import lines_of

from data_tools.evaluate.adapters import ADAPTERS
from data_tools.evaluate.prepare import prepare
from verl_p2r.accuracy import read_option
from verl_p2r.data.record import Record
from verl_p2r.evaluation import BENCHMARKS

PUBLISHED = {
    "vsi_bench": 5130,
    "video_mmmu": 900,
    "mmvu": 625,
    "vcr_bench": 510,
    "mvbench": 4000,
    "tempcompass": 7540,
    "video_mme": 2700,
}


def records_of(folder):
    return [Record.parse(raw) for part in sorted(folder.glob("part-*.jsonl")) for raw in lines_of(part)]


def few(name, count=3):
    return dict.fromkeys(ADAPTERS[name].counts, count)


def prepared(tmp_path, name, counts=None, **options):
    source = tmp_path / name
    maker = benchmark_files.MAKERS[name]
    layout = {"layout": options.pop("layout")} if "layout" in options else {}
    videos = maker(source, counts or few(name), **layout)
    if options.pop("videos", False):
        benchmark_files.write_videos(source, videos)
    report = prepare(name, source, tmp_path / f"{name}.out", **{"partial": True, **options})
    return report, records_of(tmp_path / f"{name}.out"), videos


def test_benchmark_adapters_have_published_item_counts():
    assert {name: ADAPTERS[name].total for name in BENCHMARKS} == PUBLISHED


@pytest.mark.parametrize("name", BENCHMARKS)
def test_complete_benchmark_download_passes_count_check(tmp_path, name):
    report, records, _ = prepared(tmp_path, name, ADAPTERS[name].counts, partial=False)
    assert (report.items, report.differences) == (PUBLISHED[name], ())
    assert len({record.problem_id for record in records}) == PUBLISHED[name]
    manifest = json.loads((tmp_path / f"{name}.out" / "manifest.json").read_text())
    assert (manifest["step"], manifest["written"]) == ("prepare", PUBLISHED[name])
    assert manifest["settings"]["complete"] is True
    assert manifest["inputs"][0]["sha256"]
    assert manifest["settings"]["hub"] == ADAPTERS[name].hub


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_answer_names_an_option_and_every_path_is_a_video(tmp_path, name):
    report, records, videos = prepared(tmp_path, name, videos=True)
    assert report.missing == () if name != "mvbench" else all("tvqa" in path for path in report.missing)
    for record in records:
        assert record.extra["benchmark"] == name
        assert record.extra["video_id"]
        if record.problem_type == "multiple choice":
            labels = dict(option.split(". ", 1) for option in record.options)
            assert read_option(record.solution, labels) == record.solution
            assert list(labels) == [chr(65 + i) for i in range(len(labels))]
    assert {record.path for record in records} <= set(videos) | {*report.missing}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_unexpected_count_stops_prepare(tmp_path, name):
    with pytest.raises(ValueError, match=r"is not what was published: .*3 instead of .*--partial"):
        prepared(tmp_path, name, partial=False)


def test_items_of_one_video_are_adjacent(tmp_path):
    _, records, _ = prepared(tmp_path, "tempcompass", few("tempcompass", 4))
    paths = [record.path for record in records]
    assert paths == sorted(paths, key=paths.index)
    assert paths == [path for path in dict.fromkeys(paths) for _ in range(4)]


def test_missing_media_are_listed_and_their_items_kept(tmp_path):
    report, records, _ = prepared(tmp_path, "video_mme")
    assert report.missing == ("data/v_0.mp4", "data/v_1.mp4", "data/v_2.mp4")
    assert len(records) == 9
    manifest = json.loads((tmp_path / "video_mme.out" / "manifest.json").read_text())
    assert manifest["missing_media"] == list(report.missing)


def test_paths_are_relative_to_the_media_root(tmp_path):
    _, records, _ = prepared(tmp_path, "mmvu", media_root=tmp_path)
    assert records[0].path == "mmvu/videos/Art/0.mp4"
    with pytest.raises(ValueError, match="is not below the media root"):
        prepared(tmp_path, "mmvu", media_root=tmp_path / "elsewhere")


def test_vsi_bench_number_items_have_no_options(tmp_path):
    _, records, _ = prepared(tmp_path, "vsi_bench", few("vsi_bench", 4))
    numbers = [record for record in records if record.problem_type == "regression"]
    assert len(numbers) == 16
    assert all(not record.options and record.solution.isdigit() for record in numbers)


def test_video_mmmu_reads_long_option_lists_duplicates_and_open_items(tmp_path):
    _, records, _ = prepared(tmp_path, "video_mmmu", few("video_mmmu", 5), protocol="official")
    tracks = {record.problem_id: record for record in records}
    stem = "video_mmmu/Adaptation/validation_Energy_and_Power"
    assert tracks[f"{stem}_1"].options[-1] == "N. purple"
    assert tracks[f"{stem}_2"].problem_type == "numerical"
    assert tracks[f"{stem}_2"].solution == "12.35"
    assert tracks[f"{stem}_4"].problem_type == "multiple choice"
    assert tracks[f"{stem}_0"].options[3:5] == ("D. grey", "E. grey")
    assert tracks[f"{stem}_0"].path == "Engineering/validation_Energy_and_Power_0.mp4"
    assert "<image" not in tracks[f"{stem}_0"].problem
    assert "last frame of the video" in tracks[f"{stem}_0"].problem
    _, plain, _ = prepared(tmp_path, "video_mmmu", few("video_mmmu", 5))
    assert {record.problem for record in plain} == {"What colour has the ball?"}
    assert {record.extra["question_type"] for record in plain} == {"Perception", "Comprehension", "Adaptation"}


def test_video_mmmu_question_only_uses_the_picture_clips(tmp_path):
    source = tmp_path / "video_mmmu"
    benchmark_files.video_mmmu(source, few("video_mmmu", 300))
    report = prepare("video_mmmu_question_only", source, tmp_path / "out", protocol="official")
    records = records_of(tmp_path / "out")
    assert (report.items, report.differences) == (300, ())
    assert records[0].path == "question_only/validation_Energy_and_Power_0_image.mp4"
    assert records[0].problem_id == "video_mmmu_question_only/Adaptation/validation_Energy_and_Power_0"
    assert records[0].problem == "What colour has the ball?"  # the official prompt has no note here
    assert {record.extra["benchmark"] for record in records} == {"video_mmmu_question_only"}


def test_the_last_frame_of_a_lecture_is_sampled(tmp_path):
    from data_tools.media.parts import media_parts
    from verl_p2r.media.rules import EVALUATION

    _, records, _ = prepared(tmp_path, "video_mmmu", few("video_mmmu", 1), videos=True)
    _, body = media_parts(records[0], tmp_path / "video_mmmu", EVALUATION)
    video = body["media_io_kwargs"]["video"]
    assert video["frames_indices"][-1] == video["total_num_frames"] - 1


def test_mvbench_distinguishes_files_of_the_same_name(tmp_path):
    _, records, _ = prepared(tmp_path, "mvbench", few("mvbench", 1), videos=True)
    named = [record.path for record in records if record.path.endswith("video_0.mp4")]
    assert {"video/clevrer/video_validation/video_0.mp4", "video/perception/videos/video_0.mp4"} <= set(named)
    assert "video/ssv2_video/video_0.webm" in [record.path for record in records]


@pytest.mark.parametrize(
    ("protocol", "layout", "path", "media"),
    [
        ("video_r1", 0, "video/star/Charades_v1_480/video_0.mp4", {}),  # uncut
        ("official", 0, "video/star/Charades_v1_480/video_0.mp4", {"video_start": 0.5, "video_end": 2.5}),
        ("official", 1, "video/star/Charades_segment/video_0.mp4", {}),  # cut already
    ],
)
def test_mvbench_clips_follow_the_protocol(tmp_path, protocol, layout, path, media):
    _, records, _ = prepared(tmp_path, "mvbench", few("mvbench", 1), protocol=protocol, layout=layout, videos=True)
    (record,) = [record for record in records if record.extra["question_type"] == "action_sequence"]
    assert (record.path, dict(record.media)) == (path, media)
    converted = [record.path for record in records if record.extra["question_type"] == "action_antonym"]
    assert converted == [f"video/ssv2_video{'_mp4/video_0.mp4' if layout else '/video_0.webm'}"]


def test_clips_do_not_replace_whole_videos(tmp_path):
    report, _, _ = prepared(tmp_path, "mvbench", few("mvbench", 1), layout=1, videos=True)
    assert "video/star/Charades_v1_480/video_0.mp4" in report.missing


def test_tempcompass_asks_all_four_types_as_choices(tmp_path):
    _, records, _ = prepared(tmp_path, "tempcompass", few("tempcompass", 2))
    kinds = {record.problem_id: record for record in records}
    assert kinds["tempcompass/yes_no/1"].options == ("A. yes", "B. no")
    assert kinds["tempcompass/yes_no/1"].solution == "B"
    assert kinds["tempcompass/caption_matching/1"].options == ("A. the ball is red.", "B. the ball is green.")
    assert kinds["tempcompass/caption_matching/1"].solution == "B"
    assert kinds["tempcompass/captioning/0"].problem == "What colour has the ball?"
    assert kinds["tempcompass/multi-choice/1"].solution == "B"


def test_tempcompass_also_reads_the_json_of_its_repository(tmp_path):
    row = {"question": "What happens?\nA. red\nB. blue", "answer": "B. blue"}
    files = {
        "multi-choice": row,
        "yes_no": {"question": "Is it?", "answer": "no"},
        "caption_matching": {"question": "Which?\nCaption A: one\nCaption B: two", "answer": "Caption A: one"},
        "captioning": {"question": "Describe", "mc_question": row["question"], "mc_answer": "A. red"},
    }
    for kind, one in files.items():
        benchmark_files.write_json(tmp_path / "tc" / "questions" / f"{kind}.json", {"12": {"order": [one]}})
    prepare("tempcompass", tmp_path / "tc", tmp_path / "out", partial=True)
    solutions = {record.extra["question_type"]: record.solution for record in records_of(tmp_path / "out")}
    assert solutions == {"multi-choice": "B", "yes_no": "B", "caption_matching": "A", "captioning": "A"}


def test_prepare_drops_open_items_and_empty_options(tmp_path):
    _, records, _ = prepared(tmp_path, "vcr_bench", {"": 4})
    assert [len(record.options) for record in records] == [3, 4, 3, 4]
    _, records, _ = prepared(tmp_path, "mmvu", {"multiple-choice": 3})
    assert len(records) == 3


def test_video_r1_files_are_read_unchanged(tmp_path):
    file = benchmark_files.video_r1(tmp_path)
    report = prepare("video_r1", file, tmp_path / "out", media_root=tmp_path)
    records = records_of(tmp_path / "out")
    assert report.adapter.name == "tempcompass"
    assert records[1].path == "Evaluation/TempCompass/videos/1.mp4"
    assert (records[1].solution, records[1].extra["benchmark"]) == ("B", "tempcompass")
    with pytest.raises(ValueError, match="its name is not that of a benchmark"):
        prepare("video_r1", tmp_path / "out" / "manifest.json", tmp_path / "out2")


def test_prepare_records_hub_revision(tmp_path):
    note = tmp_path / "mmvu" / ".cache" / "huggingface" / "download" / "validation.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("0123abc\netag\n1.0\n")
    report, _, _ = prepared(tmp_path, "mmvu")
    assert report.revision == "0123abc"


@pytest.mark.parametrize("changes", [{"answer": None}, {"choices": ["red", "blue"]}])
def test_items_in_another_form_are_reported_with_their_file(tmp_path, changes):
    """Another revision may name a field otherwise, or hold it in another form."""
    benchmark_files.MAKERS["mmvu"](tmp_path / "mmvu", few("mmvu"))
    file = tmp_path / "mmvu" / "validation.json"
    rows = [{**row, **changes} for row in json.loads(file.read_text())]
    file.write_text(json.dumps([{name: value for name, value in row.items() if value is not None} for row in rows]))
    with pytest.raises(ValueError, match=r"validation\.json: an item lacks a field, or holds it in another form"):
        prepare("mmvu", tmp_path / "mmvu", tmp_path / "out", partial=True)


@pytest.mark.parametrize(
    ("name", "message"), [("mmmu", "benchmark 'mmmu' is unknown: name one of vsi_bench"), ("mmvu", "is not a folder")]
)
def test_unusable_input_is_rejected(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds none of validation\.json"):
        prepare("mmvu", tmp_path / "empty", tmp_path / "out")
