"""Pages that keep a place for measured tables, between two markers that name the benchmark."""

from pathlib import Path

from dmsh_serving.errors import InputError

__all__ = ["around", "markers", "replace"]


def markers(name: str) -> tuple[str, str]:
    """Return the lines that begin and end the place of benchmark ``name``."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def around(page: Path, name: str) -> tuple[str, str]:
    """Return the text before and after the two markers of a page.

    Raises:
        InputError: there is no such page, or it lacks the two markers.
    """
    begin, end = markers(name)
    if not page.is_file():
        raise InputError(f"--page {page} is not there: name a page with {begin} ... {end} to write between")
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise InputError(f"{page} has no {begin} ... {end} to write between: add the two lines")
    return before, after


def replace(page: Path, name: str, text: str) -> None:
    """Replace the text between the markers of ``page``.

    Raises:
        InputError: as :func:`around`.
    """
    before, after = around(page, name)
    begin, end = markers(name)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
