"""Settings are read back as they were written, and a file that was edited wrongly is refused by the value."""

import json

import pytest

from dmsh_serving.errors import InputError
from dmsh_serving.triton.settings import EncoderSettings, read_settings, write_settings

TUNED = EncoderSettings("openvino", 4, 2, 3, 16, 500)


def test_settings_are_read_back_as_they_were_written(tmp_path):
    write_settings(tmp_path / "settings.json", TUNED, {"why": "measured"})
    assert read_settings(tmp_path / "settings.json") == TUNED
    assert json.loads((tmp_path / "settings.json").read_text())["measured"] == {"why": "measured"}


def test_only_what_is_given_is_replaced():
    assert TUNED.replaced({"threads": None, "streams": 1, "max_batch": 8}) == EncoderSettings(
        "openvino", 4, 1, 3, 8, 500
    )
    assert (TUNED.encoder, EncoderSettings().encoder) == ("openvino", "python")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tvm"}, "no runtime 'tvm'"),
        ({"runtime": ["openvino"]}, r"no runtime \['openvino'\]"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"instances": True}, "instances must be a whole number"),
        ({"queue_delay_microseconds": -1}, "queue_delay_microseconds must be a whole number of at least 0"),
        ({"max_batch": "8"}, "max_batch must be a whole number"),
        ({"colour": "red"}, "is no file of dmsh-export tune"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path, change, message):
    write_settings(tmp_path / "settings.json", TUNED, {})
    said = json.loads((tmp_path / "settings.json").read_text())
    said["settings"] |= change
    (tmp_path / "settings.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=message):
        read_settings(tmp_path / "settings.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "dmsh-deploy", "settings": {}}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"settings\.json is no file of dmsh-export tune"):
        read_settings(tmp_path / "settings.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json cannot be read: No such file"):
        read_settings(tmp_path / "absent.json")
