"""The sheet of ``query --sheet``: every picture is in the page, and nothing of a key is trusted."""

import pytest
from PIL import Image

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install 'dmsh-toolkit[web]'")

from dmsh_serving.cli.sheet import write_sheet


def result(file, *keys):
    return {"file": str(file), "nearest": [{"id": n, "distance": n, "key": key} for n, key in enumerate(keys)]}


def test_a_sheet_holds_the_pictures_of_queries_and_neighbours(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (300, 200), (200, 0, 0)).save(images / name)
    query = tmp_path / "query.png"
    Image.new("RGB", (30, 20)).save(query)
    Image.new("RGB", (30, 20)).save(tmp_path / "secret.png")
    keys = ("a.png", "b.png", "gone.png", "../secret.png", "", "\0.png", "<script>alert(1)</script>")
    write_sheet(tmp_path / "sheet.html", [result(query, *keys)], images)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert page.count("no picture") == 5
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
