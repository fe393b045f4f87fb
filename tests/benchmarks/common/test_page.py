"""Pages that benchmarks write their tables to."""

import pytest
from benchmarks.common import page as marked_page
from project import ROOT

from dmsh_serving.errors import InputError


def test_what_stands_between_the_markers_is_replaced_and_the_rest_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- it: begin -->\nold\n<!-- it: end -->\nafter\n")
    marked_page.replace(page, "it", "new")
    text = page.read_text()
    assert text == "before\n<!-- it: begin -->\nnew\n<!-- it: end -->\nafter\n"
    marked_page.replace(page, "it", "new")
    assert page.read_text() == text


@pytest.mark.parametrize("text", ["nothing", "<!-- it: begin -->", "<!-- it: end --> <!-- it: begin -->"])
def test_a_page_without_both_markers_is_refused_and_left_as_it_is(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InputError, match="add the two lines"):
        marked_page.replace(page, "it", "new")
    assert page.read_text() == text


def test_a_page_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.md is not there"):
        marked_page.around(tmp_path / "none.md", "it")


@pytest.mark.parametrize(
    ("page", "name"),
    [("ranking", "rank"), ("encoding", "encode-vnni"), ("encoding", "encode-amx"), ("serving", "serve")],
)
def test_the_pages_in_docs_have_their_markers(page, name):
    marked_page.around(ROOT / "docs" / f"{page}.md", name)
