"""The benchmark of file searches: its sums, its tables, and that both rules are served."""

import io

import pytest
from benchmarks.files import __main__ as files
from benchmarks.files import paths
from benchmarks.files.paths import FilePath, Steps
from PIL import Image


def test_what_no_model_accounts_for_is_the_rest():
    assert Steps(20.0, 10.0, 5.0, 1.0, 0.5).rest == pytest.approx(3.5)


def test_the_tables_have_a_row_for_each_rule_and_say_how_many_times_as_slow():
    found = [FilePath("demo", "a photograph", rule, Steps(20.0 / rule, 10, 5, 1, 0.5)) for rule in (1, 2)]
    heads, first, second = paths.steps_of(found)
    assert len(heads) == len(first) == len(second)
    assert (first[:4], second[3]) == (["demo", "a photograph", "1", "20.00"], "10.00")
    table = files.decode_table({"Pillow": 66.0, "rule 1": 60.0, "rule 2": 20.0})
    assert table[1:] == [["Pillow", "66.0", "3.30"], ["rule 1", "60.0", "3.00"], ["rule 2", "20.0", "1.00"]]
    assert files.markdown(table).splitlines()[1] == "| --- | ---: | ---: |"


def test_the_photograph_is_a_jpeg_of_its_size():
    with Image.open(io.BytesIO(paths.photograph((640, 427)))) as image:
        assert (image.format, image.size) == ("JPEG", (640, 427))


@pytest.mark.slow
def test_the_newest_rule_decodes_a_photograph_faster():
    """The page has the figures of a calm machine: three times, where this holds half of it on any."""
    found = paths.decode_milliseconds()
    assert found["rule 1"] > 1.5 * found["rule 2"]


@pytest.mark.live
@pytest.mark.program
def test_both_rules_are_served_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PHOTO", (800, 600))
    found = paths.file_paths("demo", tmp_path, 1000, 0.2)
    assert [(path.rule, path.network) for path in found] == [(1, "demo")] * 3 + [(2, "demo")] * 3
    assert all(min(path.steps.decode, path.steps.encode, path.steps.rank) > 0 for path in found)
    assert all(path.steps.waited > path.steps.decode for path in found)
