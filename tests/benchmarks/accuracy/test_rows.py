import pytest
from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy.rows import Row, kept, markdown

from dmsh_serving.errors import InputError


def row(data, seed, quantised=0.795):
    return Row(data, seed, 0.8, quantised, 0.8, 0.98, 0.99, 0.77)


def test_rows_of_other_runs_are_kept_and_those_measured_again_replaced(tmp_path):
    kept([row("drawings, 128 pixels", 0), row("digits", 0)], tmp_path)
    every = kept([row("drawings, 128 pixels", 0, 0.79), row("drawings, 128 pixels", 1)], tmp_path)
    assert [(each.data, each.seed, each.quantised_map) for each in every] == [
        ("digits", 0, 0.795), ("drawings, 128 pixels", 0, 0.79), ("drawings, 128 pixels", 1, 0.795),
    ]  # fmt: skip


def test_the_table_has_one_line_per_network_with_means_and_spread():
    text = markdown([row("digits", 0), row("drawings", 0, 0.79), row("drawings", 1)])
    line = "| drawings | 2 | 80.00 ± 0.00 | 0.75 ± 0.35 | 0.00 ± 0.00 | 3.00 ± 0.00 | 98.00%, 99.00% |"
    assert text.splitlines()[3] == line
    assert text.splitlines()[2].startswith("| digits | 1 | 80.00 ± 0.00 | 0.50 ± 0.00 |")


def test_a_page_without_a_place_for_the_table_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "page.md").write_text("no place")
    with pytest.raises(InputError, match="add the two lines"):
        accuracy.accuracy(["mnist5k"], work=tmp_path / "work", page=tmp_path / "page.md")
    assert not (tmp_path / "work").exists()
