from pathlib import Path

import pytest
from website.pages import REPOSITORY, ROOT, with_diagrams, with_site_links


def linked(text, file, place, tmp_path, monkeypatch):
    """Return ``text`` as a page of a repository in ``tmp_path`` that lies at ``file``, to be read at ``place``."""
    for name in ("docs/a.md", "docs/how-to/b.md", "SECURITY.md", "export/net.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / file).write_text(text)
    monkeypatch.setattr("website.pages.ROOT", tmp_path)
    return with_site_links(tmp_path / file, place)


@pytest.mark.parametrize(
    ("file", "place", "link", "becomes"),
    [
        ("docs/a.md", "a.md", "how-to/b.md#x", "how-to/b.md#x"),
        ("docs/how-to/b.md", "how-to/b.md", "../../SECURITY.md", "../security.md"),
        ("docs/a.md", "a.md", "../export/net.py", f"{REPOSITORY}/blob/main/export/net.py"),
        ("docs/a.md", "a.md", "../export", f"{REPOSITORY}/tree/main/export"),
        ("SECURITY.md", "security.md", "docs/a.md#x", "a.md#x"),
        ("docs/a.md", "a.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_leads_where_the_file_is_online(file, place, link, becomes, tmp_path, monkeypatch):
    text = f"see [it]({link}) and [more](#below)"
    expected = f"see [it]({becomes}) and [more](#below)"
    assert linked(text, file, Path(place), tmp_path, monkeypatch) == expected


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"docs/a\.md links to \.\./gone\.py"):
        linked("[x](../gone.py)", "docs/a.md", tmp_path, tmp_path, monkeypatch)


def test_a_page_loads_the_script_of_diagrams_only_if_it_has_one():
    assert with_diagrams("no drawing", Path("a.md")) == "no drawing"
    assert '<script src="../../assets/mermaid.min.js">' in with_diagrams("```mermaid\n```", Path("how-to/a.md"))


def test_the_repository_is_found():
    assert (ROOT / "mkdocs.yml").is_file()
