"""The errors that a user can meet; each kind has its own exit code."""

__all__ = [
    "CheckError",
    "DmshError",
    "InputError",
    "MemoryShortError",
    "MissingError",
    "OtherModelError",
    "UnavailableError",
]


class DmshError(Exception):
    """Base of every error raised for the user: one line that says what, where, and what to do next."""

    exit_code = 1


class CheckError(DmshError):
    """A check ran and failed: parity, known answer, certificate, lint."""

    exit_code = 1


class InputError(DmshError):
    """The input or the usage is wrong."""

    exit_code = 2


class MemoryShortError(InputError):
    """An image needs more memory to decode than there is now: in a folder, that is no damage."""


class OtherModelError(InputError):
    """A gallery is sound, but belongs to another model than asked for."""


class MissingError(DmshError):
    """Something this machine lacks: a GPU, a package, a Triton server."""

    exit_code = 3


class UnavailableError(MissingError):
    """A server that is needed does not answer now; the same request may go through later."""
