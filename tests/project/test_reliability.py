"""docs/reliability.md shows every fault with the tests that bear its number, and none is without a test."""

import re

from fault_table import BEGIN, CASES, END, PAGE, faults_tested, table
from project import ROOT

NUMBERS = [number for cases in CASES.values() for number in cases]


def test_the_table_of_the_page_is_that_of_the_tests():
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert shown == f"\n\n{table(faults_tested(ROOT / 'tests'))}\n", (
        "python tests/helpers/fault_table.py writes it anew"
    )


def test_every_fault_has_a_test_and_every_number_a_fault():
    assert list(range(1, 49)) == NUMBERS
    assert set(faults_tested(ROOT / "tests")) == set(NUMBERS)


def test_a_test_of_two_faults_counts_for_both(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("def test_fault_01_48_it_works(tmp_path):\n    pass\n")
    assert faults_tested(tmp_path / "tests") == {
        number: [("it works", "tests/test_it.py")] for number in (1, 48)
    }  # fmt: skip


def test_make_test_faults_runs_every_test_with_a_number():
    recipe = re.search(r"^test-faults:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert recipe == "DMSH_FAULTS=all $(BIN)/pytest -k test_fault_"
