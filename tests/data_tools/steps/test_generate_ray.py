# SPDX-License-Identifier: Apache-2.0
"""Step 1 without a server, up to Ray's door: what workers are given, and what becomes of what comes back.

Behind the door, real engines under Ray Data: `tests/test_e2e_data.py`.
"""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from pipeline_records import make_records
from release_files import lines_of, write_lines

from data_tools.steps import generate_ray
from data_tools.steps.asking import BatchAsker, NobodyReplies
from data_tools.steps.generate import generate
from data_tools.steps.generate_ray import OfflineGenerator
from data_tools.steps.generate_server import Generator
from data_tools.steps.generate_settings import GenerateSettings, prompt_of
from verl_p2r.data.prompt_template import PromptTemplate
from verl_p2r.data.record import Record

LIMIT = 64  # unanswered records in a row that end a run: two of Ray Data's batches


@pytest.fixture
def settings(tiny_model) -> GenerateSettings:
    return GenerateSettings(
        model="judge", max_tokens=64, extra_body={"top_k": 5}, offline={"model_source": str(tiny_model)}
    )


def said(row: dict, text: str = "fine", tokens: int = 9) -> dict:
    return {"record": row["record"], "generated_text": text, "num_generated_tokens": tokens, "__inference_error__": ""}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster that answers each record by a function of its row; `cluster(function)` gives the rows it has seen."""

    def install(answer=said) -> list[dict]:
        seen: list[dict] = []

        def rows(self, records):
            prepare = generate_ray._preparation(self)
            for record in records:
                row = {"record": pickle.dumps(record)}
                row |= prepare(row)
                seen.append(row)
                yield row if row["__inference_error__"] else answer(row)

        monkeypatch.setattr(OfflineGenerator, "_rows", rows)
        return seen

    return install


def run(tmp_path, settings, records, **kwargs):
    file = write_lines(tmp_path / "in.jsonl", records)
    return generate([file], tmp_path / "out", settings, tmp_path, max_reject_share=1.0, **kwargs)


def test_ray_worker_and_server_receive_same_prompt_and_frames(tmp_path, settings, cluster):
    records = make_records(tmp_path, 5)
    seen = cluster()
    assert run(tmp_path, settings, records, offline=True).written == 5
    for row, raw in zip(seen, records, strict=True):
        text = prompt_of(Record.parse(raw), PromptTemplate.load("process_aware"))
        medium = f"<|vision_start|><|{raw['data_type']}_pad|><|vision_end|>"
        assert row["prompt"].endswith(f"user\n{medium}{text}<|im_end|>\n<|im_start|>assistant\n")
        assert row["sampling_params"] == {"temperature": 0.0, "max_tokens": 64, "top_k": 5}
        [data] = row["multimodal_data"][raw["data_type"]]
        if raw["data_type"] == "video":
            frames, metadata = data
            assert frames.shape == (6, 280, 392, 3)
            assert (metadata["fps"], metadata["frames_indices"]) == (4.0, [0, 2, 4, 7, 9, 11])
            assert metadata["do_sample_frames"] is False
            assert abs(frames[0].astype(int) - 90).max() <= 3  # grey until the last frame
            assert np.ptp(frames[-1].mean((0, 1))) > 100
        else:
            assert np.asarray(data.media).shape == (84, 112, 3)


def test_frames_sent_as_images_follow_their_timestamps(tmp_path, settings, cluster):
    seen = cluster()
    run(tmp_path, replace(settings, video_as="images"), make_records(tmp_path, 4)[3:], offline=True)
    frame = "<|vision_start|><|image_pad|><|vision_end|>"
    times = (0.0, 0.5, 1.0, 1.8, 2.2, 2.8)
    assert "".join(f"<{time} seconds>{frame}" for time in times) in seen[0]["prompt"]
    assert len(seen[0]["multimodal_data"]["image"]) == 6


def test_offline_generate_rejects_only_bad_records(tmp_path, settings, cluster):
    records = make_records(tmp_path, 6)
    records[1]["path"] = "img/gone.png"
    odd = {"2": said_error("VLLMValidationError: too long"), "4": lambda row: said(row, " ", 64)}
    seen = cluster(lambda row: odd.get(pickle.loads(row["record"]).problem_id, said)(row))
    settled: list[bool] = []
    report = run(tmp_path, settings, records, offline=True, on_record=settled.append)
    assert (report.written, report.rejected) == (3, {"refused": 1, "useless reply": 1, "missing file": 1})
    assert settled == [True, False, False, True, False, True]
    messages = {line["record"]: line["message"] for line in lines_of(tmp_path / "out" / "rejects.jsonl")}
    assert messages["2"] == "VLLMValidationError: too long"
    assert "cut off by max_tokens" in messages["4"]
    run(tmp_path, settings, records, offline=True)
    assert [pickle.loads(row["record"]).problem_id for row in seen[6:]] == ["1", "2", "4"]


def said_error(error: str):
    return lambda row: {"record": row["record"], "__inference_error__": error}


def test_many_refused_records_and_empty_replies_do_not_stop_the_others(tmp_path, settings, cluster):
    def answer(row):
        number = int(pickle.loads(row["record"]).problem_id)
        if number >= LIMIT + 5:
            return said(row)
        return said_error("ValueError: too long")(row) if number % 2 else said(row, "")

    cluster(answer)
    assert run(tmp_path, settings, make_records(tmp_path, LIMIT + 10, videos=0), offline=True).written == 5


def test_server_and_cluster_runs_continue_each_others_work(tmp_path, settings, cluster, judge_server):
    records = make_records(tmp_path, 6)
    seen = cluster()
    online = replace(settings, base_urls=(judge_server.base_url,))
    assert run(tmp_path, settings, records[:2], offline=True).written == 2
    judge_server.control(models=["judge"])
    assert run(tmp_path, online, records[:4]).written == 4
    assert len(judge_server.calls()) == 2
    assert run(tmp_path, settings, records, offline=True).written == 6
    assert len(seen) == 4


def test_ray_is_not_started_when_all_replies_are_stored(tmp_path, settings, cluster, monkeypatch):
    records = make_records(tmp_path, 2)
    cluster()
    run(tmp_path, settings, records, offline=True)
    monkeypatch.setattr(OfflineGenerator, "_rows", None)
    assert run(tmp_path, settings, records, offline=True).written == 2


def test_offline_generate_stops_when_engines_never_reply(tmp_path, settings, cluster):
    seen = cluster(said_error("RuntimeError: out of memory"))
    with pytest.raises(NobodyReplies, match=r"generate: RuntimeError: out of memory\. What has come so far is kept"):
        run(tmp_path, settings, make_records(tmp_path, LIMIT + 5, videos=0), offline=True)
    assert len(seen) == LIMIT
    assert not (tmp_path / "out").exists()


def test_ray_failure_gives_one_line_error(tmp_path, settings, monkeypatch):
    from ray.exceptions import RayActorError

    def rows(self, records):
        yield from ()
        raise RayActorError

    monkeypatch.setattr(OfflineGenerator, "_rows", rows)
    with pytest.raises(NobodyReplies, match=r"^generate: Ray has failed \(.*\)\. What has come so far is kept"):
        run(tmp_path, settings, make_records(tmp_path, 1), offline=True)


def test_offline_sampling_defaults_match_vllm_server(tmp_path, settings):
    (tmp_path / "model").mkdir()
    defaults = {"repetition_penalty": 1.05, "temperature": 0.1, "top_p": 0.8, "do_sample": True}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(defaults))
    offline = OfflineGenerator(replace(settings, offline={"model_source": str(tmp_path / "model")}), tmp_path)
    assert offline.sampling == {
        "repetition_penalty": 1.05,
        "top_p": 0.8,
        "temperature": 0.0,
        "max_tokens": 64,
        "top_k": 5,
    }


def test_online_and_offline_generate_share_reply_keys(tmp_path, settings):
    offline = OfflineGenerator(settings, tmp_path)
    assert isinstance(offline, BatchAsker)
    online = Generator(replace(settings, base_urls=("http://localhost:1/v1",), offline={}), tmp_path)
    assert offline.fingerprint == online.fingerprint
    assert not isinstance(online, BatchAsker)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "no model is named: give --model"),
        ({"extra_body": {"top_q": 1}}, r"generate\.extra_body: vLLM's SamplingParams does not accept it.*top_q"),
        ({"offline": {"model_source": "/nowhere"}}, r"generate\.offline\.model_source, or else generate\.model: "),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        OfflineGenerator(replace(settings, **changes), tmp_path)


def test_unknown_ray_data_option_is_named(tmp_path, settings):
    own = replace(settings, offline={**settings.offline, "batch_sise": 4})
    with pytest.raises(ValueError, match=r"(?s)generate\.offline: Ray Data does not accept it: .*batch_sise"):
        run(tmp_path, own, make_records(tmp_path, 1), offline=True)
