"""A server's log: kept over starts, and read for why one failed."""

import re
from pathlib import Path

from dmsh_serving.errors import CheckError, DmshError, InputError, MissingError
from dmsh_serving.gallery.folder import OtherModelError

__all__ = ["begin_log", "error_from_log", "news_of_galleries"]

LARGEST_LOG_BYTES = 64 * 1024 * 1024
# As logging writes it, with the level and the logger in front.
_NEWS = re.compile(
    r"^(?:[A-Z]+ [\w.]+: )?(gallery .*(?:goes on serving|serves in its place|now serves version).*)$", re.MULTILINE
)


def begin_log(log_file: Path) -> int:
    """Return the size of a log that is appended to; one of over :data:`LARGEST_LOG_BYTES` is renamed to ``NAME.1``."""
    if log_file.exists() and log_file.stat().st_size > LARGEST_LOG_BYTES:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))
    log_file.touch()
    return log_file.stat().st_size


def error_from_log(text: str, log_file: Path) -> DmshError:
    """Return what a server's log says about a start that failed; a model's own error keeps its kind."""
    # A Python model's exception, its line breaks written as backslash and n:
    # "failed to load 'NAME' version 1: Internal: InputError: REASON\n\nAt:\n  FILE(LINE): ..."
    failed = re.findall(r"failed to load '(.*?)' version \d+: (.*?)(?:\\n|\"?$)", text, flags=re.MULTILINE)
    reasons = [(model, re.sub(r"^Internal: (\w+Error): ", "", reason)) for model, reason in failed]
    if reasons:
        kinds = (InputError, OtherModelError, CheckError, MissingError)
        kind = next((kind for kind in kinds if f": {kind.__name__}: " in failed[0][1]), MissingError)
        said = "; ".join(f"{model} does not load: {reason.strip()[:400]}" for model, reason in reasons)
        return kind(f"{said} (log: {log_file})")
    mistakes = _mistakes_in(text)
    if mistakes:
        return InputError(f"{'; '.join(mistakes)}: dmsh-export lint finds the place (log: {log_file})")
    errors: list[str] = re.findall(r"^(?:E\d{4} \S+ \d+ \S+\] |error: )(.*)$", text, flags=re.MULTILINE)
    lines = errors or [line for line in text.splitlines() if line.strip()] or ["its log is empty"]
    return MissingError(f"Triton did not start: {lines[-1].strip()[:400]} (log: {log_file})")


def _mistakes_in(text: str) -> list[str]:
    """Return what Triton says of configurations that it refuses unloaded: of models or, if of none, of ensembles."""
    models = re.findall(
        r"(?:Poll failed for model directory|failed to load model) '(.*?)': (.*?)\"?$", text, flags=re.MULTILINE
    )
    syntax = re.findall(r"Error parsing text-format [\w.]+: (.*)$", text, flags=re.MULTILINE)
    if models:
        said = [f"{model} does not load: {reason.strip()[:300]}" for model, reason in models]
        return [*said, *syntax[:1]]
    ensembles: list[str] = re.findall(r"Invalid argument: (in ensemble .*?)\"?$", text, flags=re.MULTILINE)
    return ensembles[:1]


def news_of_galleries(text: str) -> list[str]:
    """Return the lines in which the ranker says that it serves another version of a gallery, or refuses one."""
    return _NEWS.findall(text)
