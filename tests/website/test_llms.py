import pytest
from website.llms import first_sentence, write_llms

CONFIG = {
    "site_name": "Tool",
    "site_description": "Does it.",
    "nav": [{"Home": "index.md"}, {"Use": [{"Run": "run.md"}]}],
}


def test_every_page_of_the_menu_has_its_line(tmp_path):
    (tmp_path / "index.md").write_text("# Tool\n")
    (tmp_path / "run.md").write_text("# Run\n\n```\ncode.\n```\n\nIt [runs](x.md) `fast`. And more.\n")
    write_llms(CONFIG, tmp_path)
    text = (tmp_path / "llms.txt").read_text()
    assert text == "# Tool\n\n> Does it.\n\n## Use\n\n- [Run](run.md): It runs fast.\n"


def test_a_page_in_no_menu_ends_the_build(tmp_path):
    for name in ("index.md", "run.md", "lost.md"):
        (tmp_path / name).write_text("# Title\n\nA sentence.\n")
    with pytest.raises(SystemExit, match=r"in no menu: lost\.md"):
        write_llms(CONFIG, tmp_path)


def test_a_page_without_a_sentence_ends_the_build():
    with pytest.raises(SystemExit, match="no sentence"):
        first_sentence("# Only a title\n\n| a | table |\n")
