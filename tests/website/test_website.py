"""The site builds, strictly, and loads nothing from another host."""

import re
import shutil
import subprocess
import sys

import pytest
from project import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None and not list((ROOT / "build").glob("mermaid-*.min.js")),
    reason="npm is not installed: it fetches the script that draws the site's diagrams",
)
SITE = ROOT / "build" / "site"
_LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?(https?://[^\"\s>]+)")


def test_the_site_builds_with_every_page_and_loads_nothing_from_another_host():
    done = subprocess.run([sys.executable, "-m", "website"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(SITE.rglob("*.html"))
    assert len(pages) > 20
    loaded = {url for page in pages for url in _LOADED.findall(page.read_text())}
    assert {url for url in loaded if not url.startswith("https://dmsh-toolkit.github.io/")} == set()  # canonical links
    reference = (SITE / "reference" / "python" / "index.html").read_text()
    assert 'id="dmsh_serving.client.SearchClient.search"' in reference
    assert (SITE / "llms.txt").read_text().startswith("# DMSH toolkit")
    assert (SITE / "reference" / "dmsh-serve.md").is_file()
