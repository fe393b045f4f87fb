"""A griffe extension: docstrings are read as Markdown, in which Sphinx's roles and double colons mean nothing."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|meth|mod|class|attr|data):`~?([^`]+)`")


def as_markdown(text: str) -> str:
    """Return ``text`` with roles as plain code and literal blocks as Markdown's indented ones."""
    return re.sub(r"::\n(\s*\n)", r":\n\1", _ROLE.sub(r"`\1`", text))


class PlainDocstrings(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
