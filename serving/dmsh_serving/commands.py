"""How commands are declared: version and shell completion, an example at the end of each help, named groups of options.

Rich would draw the groups as panels, but importing it triples the time of ``--help``: headings in plain text do.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from dmsh_serving import __version__

__all__ = ["Flags", "command", "make_app"]

_Function = TypeVar("_Function", bound=Callable[..., None])


class Flags:
    """Marks a parameter whose default is a dataclass instance: each named field becomes an option of the command.

        def fit(training: Annotated[TrainingOptions, Flags(epochs=typer.Option(help="..."))] = TrainingOptions())

    An option's type is its field's, its default the instance's value. Other fields keep the instance's values. What the
    dataclass refuses, the command refuses.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options


class _Command(TyperCommand):
    """A command whose help shows options under the heading of their ``rich_help_panel``; first those without one."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                heading = getattr(parameter, "rich_help_panel", None) or kind
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def make_app(purpose: str, name: str | None = None) -> typer.Typer:
    """Return an empty application with plain help, which answers fast.

    Args:
        purpose: one sentence, shown by ``--help``.
        name: the name of a program, which gets ``--version`` and shell completion; None for a group of commands.
    """
    app = typer.Typer(
        help=purpose,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=name is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Exit codes: 0 done, 1 a check failed, 2 bad input or usage, 3 something this machine lacks, "
        "70 a fault of this tool itself, 130 interrupted. --debug shows the traceback of an error.",
    )
    if name is not None:

        def show(asked: bool) -> None:
            if asked:
                typer.echo(f"{name} {__version__}")
                raise typer.Exit

        @app.callback()
        def program(
            version: Annotated[
                bool, typer.Option("--version", help="Show the version and exit.", callback=show, is_eager=True)
            ] = False,
        ) -> None:
            pass

    return app


def command(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[_Function], _Function]:
    """Register a function as a command of ``app``, whose help ends with ``examples``: whole command lines.

    Its name is the function's unless ``name`` is given.
    """

    def register(function: _Function) -> _Function:
        title = "Example" if len(examples) == 1 else "Examples"
        # \b keeps the lines as they are, see click's documentation.
        epilog = "\n".join(["\b", f"{title}:", *(f"  {line}" for line in examples)])
        app.command(name, cls=_Command, epilog=epilog)(_with_options_of_fields(function))
        return function

    return register


def _with_options_of_fields(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function`` with one parameter for each field that :class:`Flags` name; itself if there are none."""
    hints = get_type_hints(function, include_extras=True)
    shown: list[inspect.Parameter] = []
    filled: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        flags = next((mark for mark in getattr(hints[name], "__metadata__", ()) if isinstance(mark, Flags)), None)
        if flags is None:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        instance = parameter.default
        kinds = get_type_hints(type(instance))
        filled[name] = (instance, tuple(flags.options))
        shown += [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(instance, field),
                annotation=Annotated[kinds[field], option],
            )
            for field, option in flags.options.items()
        ]
    if not filled:
        return function

    def spread(**given: Any) -> None:
        for name, (instance, fields) in filled.items():
            given[name] = dataclasses.replace(instance, **{field: given.pop(field) for field in fields})
        function(**given)

    functools.update_wrapper(spread, function)
    vars(spread).pop("__wrapped__")  # the signature differs
    spread.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return spread
