"""The plugin's configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from modal_nomad_gpu._config import APPLICATION_XIDS, Config, ConfigError, Share, read_config, schema


def test_the_schema_names_every_setting_with_its_default() -> None:
    attributes = schema()["object"]["attributes"]
    assert set(attributes) == set(Config.__dataclass_fields__)
    fields = attributes["share"]["block_list"]["nested"]["object"]["attributes"]
    assert set(fields) == set(Share.__dataclass_fields__)


def test_the_readme_names_every_setting() -> None:
    text = (Path(__file__).parents[2] / "plugin/README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| (?:`|none)", text, flags=re.M)) == set(Config.__dataclass_fields__)


def test_what_nomad_sends_for_an_empty_block_is_the_default() -> None:
    sent = {
        "enabled": True,
        "ignored_gpu_ids": [],
        "fingerprint_period": "15s",
        "ignored_xids": list(APPLICATION_XIDS),
        "max_ecc_errors": 0,
        "share": [],
        "mig_as_slices": False,
        "mps_pipe_directory": "/tmp/nvidia-mps",
        "require_mps": False,
        "fake": "",
    }
    assert read_config(sent) == read_config({}) == Config()


def test_settings_are_read() -> None:
    config = read_config(
        {
            "fingerprint_period": "1m30s",
            "ignored_gpu_ids": ["GPU-1"],
            "ignored_xids": [13.0, 94],
            "share": [{"gpu": "L4$", "slices": 4, "slice_memory": None}, {"gpu": "", "slice_memory": 10240}],
        }
    )
    assert (config.fingerprint_period, config.ignored_gpu_ids) == (90.0, ("GPU-1",))
    assert config.ignored_xids == {13, 94}
    assert config.share == (Share("L4$", 4), Share("", 0, 10240))
    assert config.share[0].covers("GPU-x", "NVIDIA L4") and not config.share[0].covers("GPU-x", "NVIDIA L40S")
    assert Share("GPU-x").covers("GPU-x", "NVIDIA L40S")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fingerprint_period": "often"}, 'a time such as "15s"'),
        ({"fingerprint_period": "0s"}, "at least"),
        ({"ignored_xids": ["x"]}, "ignored_xids = 'x': a whole number"),
        ({"max_ecc_errors": -1}, "max_ecc_errors = -1: a whole number"),
        ({"max_ecc_errors": 0.5}, "a whole number"),
        ({"share": [{}]}, "either slices = 2 or more, or slice_memory"),
        ({"share": [{"slices": 2, "slice_memory": 3}]}, "either"),
        ({"share": [{"slices": 1}]}, "2 to 48"),
        ({"share": [{"slices": 4, "gpu": "("}]}, "no regular expression"),
        ({"slices": 4}, "slices is no setting"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
