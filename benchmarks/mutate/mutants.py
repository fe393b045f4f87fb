"""Source code -> mutants: copies with one small fault each, made by Cosmic Ray's operators and one of our own."""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

__all__ = ["Mutant", "mutants_of"]

Position = tuple[int, int]  # line from 1, column

# Statements that a check or an effect consists of; without an assignment the code would not even run.
_REMOVABLE: Final = ("atom_expr", "raise_stmt")
# Without a decorator, which makes a dataclass here, nothing runs; few exceptions are caught by their own name.
_LEFT_OUT: Final = ("RemoveDecorator", "ExceptionReplacer")
_COMPILERS: Final = ("compiled", "entry")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        path: the file.
        line: the line with the fault, from 1.
        kind: what was done.
        before: the line as it is.
        after: the line with the fault; empty if it became ``pass``.
        source: the whole file with the fault.
    """

    path: Path
    line: int
    kind: str
    before: str
    after: str
    source: str


class RemoveStatement(Operator):  # type: ignore[misc]  # Cosmic Ray has no types
    """Replace a call that stands alone, a ``raise`` or an augmented assignment by ``pass``: the check is not made."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Yield the place of ``node`` if it is such a statement."""
        if node.type != "simple_stmt":
            return
        first = node.children[0]
        augmented = (
            first.type == "expr_stmt" and first.children[1].type == "operator" and first.children[1].value != "="
        )
        if first.type in _REMOVABLE or (augmented and first.children[1].value.endswith("=")):
            yield first.start_pos, first.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return ``node`` without its statement."""
        first = node.children[0]
        node.children[0] = Name("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        """Cosmic Ray's own tests ask for these."""
        return ()


def mutants_of(path: Path, seed: int) -> list[Mutant]:
    """Return one mutant for each place and family of operators in a file, in the order of the lines.

    Of the several replacements that a family offers for one place, ``seed`` chooses. What only people read is left
    alone: annotations, the numbers in a message, and the switches of dataclasses and of ``zip``.
    """
    source = path.read_text()
    tree, spans = get_ast(source), list(_left_alone(source))
    places: dict[tuple[Position, str], list[tuple[Any, int]]] = {}
    for family, operator in _operators():
        found = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(found):
            if not any(first <= start < last for first, last in spans):
                places.setdefault((start, family), []).append((operator, occurrence))
    chosen = random.Random(f"{seed} {path.name}")
    mutants = []
    for (_, family), ways in sorted(places.items(), key=lambda entry: entry[0]):
        operator, occurrence = chosen.choice(ways)
        mutated = mutate_code(source, operator, occurrence)
        before, after = source.splitlines(), mutated.splitlines()
        line = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
        if line is not None:
            mutants.append(Mutant(path, line + 1, family, before[line].strip(), after[line].strip(), mutated))
    return mutants


def _operators() -> Iterator[tuple[str, Any]]:
    """Yield (family, operator): a family is a class of replacements of the same thing."""
    yield "RemoveStatement", RemoveStatement()
    for name in operator_names():
        family = name.rpartition("/")[2].split("_")[0]
        if family not in _LEFT_OUT and not get_operator(name).arguments():
            yield family, get_operator(name)()


def _left_alone(source: str) -> Iterator[tuple[Position, Position]]:
    """Yield where annotations, formatted messages, decorators, ``strict=`` and compiled functions begin and end."""
    for node in ast.walk(ast.parse(source)):
        parts: list[Any] = [getattr(node, name, None) for name in ("annotation", "returns")]
        parts += getattr(node, "decorator_list", [])
        parts += [node] if _is_compiled(node) else []
        parts += [node] if isinstance(node, ast.JoinedStr) or getattr(node, "arg", None) == "strict" else []
        for part in parts:
            if part is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def _is_compiled(node: ast.AST) -> bool:
    """Tell a function that numba compiles: its cache would give the code without the fault."""
    makers = [each.func for each in getattr(node, "decorator_list", []) if isinstance(each, ast.Call)]
    return any(isinstance(maker, ast.Name) and maker.id in _COMPILERS for maker in makers)
