# SPDX-License-Identifier: Apache-2.0
"""The settings under `data.p2r`: the paper's by default, as the YAML says them, and errors that say where."""

import dataclasses

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from verl_p2r.data.errors import RowError
from verl_p2r.data.settings import DataSettings
from verl_p2r.media.rules import EVALUATION, TRAINING


def test_data_yaml_defaults_equal_data_settings():
    with initialize_config_module("verl_p2r.config", version_base=None):
        config = compose("p2r_ppo", ["trainer.default_local_dir=run"])
    settings = DataSettings.from_mapping(config.data.p2r)
    assert dataclasses.replace(settings, rejects_dir=None, screen_cache=None) == DataSettings()
    assert str(settings.listing("val")) == "run/rejected_val.jsonl"
    assert settings.media.train == TRAINING
    assert settings.media.val == EVALUATION


def test_data_settings_ignore_keys_of_other_components():
    node = OmegaConf.create({"max_reject_share": 0, "media_cache": {"directory": "x"}, "process_aware": True})
    assert DataSettings.from_mapping(node) == DataSettings(max_reject_share=0.0)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"max_reject_share": 1.5}, r"data\.p2r\.max_reject_share is 1\.5: give a share between 0 and 1"),
        ({"max_reject_share": "1%"}, r"data\.p2r\.max_reject_share is '1%': give a finite number"),
        ({"max_reject_shar": 0.1}, r"data\.p2r\.max_reject_shar does not exist: did you mean max_reject_share"),
        ({"media": {"train": {"max_frame": 8}}}, r"data\.p2r\.media\.train\.max_frame does not exist: did you mean"),
        ({"media": {"val": {"max_frames": None}}}, r"data\.p2r\.media\.val\.max_frames is None: give a whole number"),
    ],
)
def test_invalid_data_setting_is_named(mapping, message):
    with pytest.raises(ValueError, match=message):
        DataSettings.from_mapping(mapping)


@pytest.mark.parametrize(
    ("source", "joined"),
    [
        ("./STAR/a.mp4", "/data/STAR/a.mp4"),
        ("a.mp4", "/data/a.mp4"),
        ("/data/a.mp4", "/data/a.mp4"),
        (["1.png", "./2.png"], ["/data/1.png", "/data/2.png"]),
    ],
)
def test_relative_media_paths_are_joined_to_media_root(source, joined):
    assert DataSettings(media_root="/data").element({"video": source}, None)["video"] == joined


@pytest.mark.parametrize("source", ["/other/a.mp4", "file:///other/a.mp4", "../a.mp4"])
def test_data_settings_refuse_paths_outside_media_root_unless_allowed(source):
    with pytest.raises(RowError, match=r"outside the media root /data: .* set data\.p2r\.allow_outside_media_root"):
        DataSettings(media_root="/data").element({"video": source}, None)
    settings = DataSettings(media_root="/data", allow_outside_media_root=True)
    assert settings.element({"video": source}, None)["video"] in ("/other/a.mp4", "/data/../a.mp4")
    DataSettings().element({"video": source}, None)


def test_data_settings_refuse_urls_unless_allowed():
    with pytest.raises(RowError, match=r"names a URL, 'https://host/a\.mp4': .* set data\.p2r\.allow_urls"):
        DataSettings().element({"video": "https://host/a.mp4", "allow_urls": True}, None)
    element = DataSettings(allow_urls=True).element({"video": "HTTPS://host/a.mp4"}, None)
    assert element == {"type": "video", "video": "https://host/a.mp4", "allow_urls": True}


def test_filling_media_element_does_not_modify_row():
    part = {"type": "video", "video": "a.mp4", "fps": 1.0}
    element = DataSettings().element(part, TRAINING)
    assert part == {"type": "video", "video": "a.mp4", "fps": 1.0}
    assert (element["fps"], element["max_frames"], element["max_pixels"]) == (1.0, 16, 128 * 28 * 28)


def test_media_rule_out_of_range_is_reported_on_media_field():
    with pytest.raises(RowError, match=r"field videos: .*fps is 5000") as error:
        DataSettings().element({"video": "a.mp4", "fps": 5000}, TRAINING)
    assert (error.value.field, error.value.reason) == ("videos", "sampling rules")
