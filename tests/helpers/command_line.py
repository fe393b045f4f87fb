"""The commands as a person runs them, in this process: torch is imported once."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def dmsh_export(*arguments):
    """Run ``dmsh-export`` as its console script would."""
    from dmsh_export.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["dmsh-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
    return Done(exit_.value.code or 0, out.getvalue(), err.getvalue())
