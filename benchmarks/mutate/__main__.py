"""How many small faults do the tests find? Mutants of the packages whose checks are the product, and their tests.

    python -m benchmarks.mutate prove quantise --sample 40 [--page docs/mutation.md] [--json FILE]

The mutants of a package are tried in random order until there are enough, so the score is that of a fair sample.
"""

import random
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.common import page as pages
from benchmarks.mutate.mutants import Mutant, mutants_of
from benchmarks.mutate.run import Outcome, Tests, import_large
from benchmarks.mutate.subjects import ROOT, SUBJECTS, Subject
from dmsh_serving.commands import make_app
from dmsh_serving.console import JsonOption, print_table, write_json
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.program import run

app = make_app("Put small faults into the code and count those that the tests find.")

EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")
NAME: Final = "mutate"
LARGE: Final = ("torch", "onnx", "numba", "hypothesis.strategies", "PIL.Image", "tritonclient.grpc", "scipy", "timm")


@dataclass(frozen=True)
class Score:
    """What was found of one package.

    Attributes:
        mutants: number of faults that there are to try.
        tried: those that were run and can be imported, without those that change nothing.
        killed: number of them that a test found.
        survivors: those that none found.
        equivalent: (survivor, reason) of those that change nothing that anyone could see.
        seconds: of the whole run; ``tests_seconds`` of the tests without a fault.
    """

    mutants: int
    tried: int
    killed: int
    survivors: tuple[Mutant, ...]
    equivalent: tuple[tuple[Mutant, str], ...]
    seconds: float
    tests_seconds: float

    @property
    def share(self) -> float:
        """Killed of tried."""
        return self.killed / max(1, self.tried)


def reasons(path: Path = EQUIVALENT) -> dict[tuple[str, str, str], str]:
    """Return {(file, line before, line after): why no test can tell them apart}."""
    entries = tomllib.loads(path.read_text()).get("equivalent", [])
    return {(entry["file"], entry["before"], entry["after"]): entry["why"] for entry in entries}


def measure(subject: Subject, sample: int, seed: int) -> Score:
    """Try ``sample`` mutants of a package, chosen at random."""
    start, known = time.monotonic(), reasons()
    mutants = [mutant for path in subject.files() for mutant in mutants_of(path, seed)]
    random.Random(seed).shuffle(mutants)
    root = ROOT / subject.package.partition("/")[0]
    chosen = ("not slow and not live and not gpu", " and ".join(f"not {word}" for word in subject.slow))
    arguments = (*subject.tests, "-m", chosen[0], "-k", chosen[1])
    killed, survivors, equivalent = 0, [], []  # type: tuple[int, list[Mutant], list[tuple[Mutant, str]]]
    with Tests(ROOT, root, subject.files(), arguments) as tests:
        for mutant in mutants:
            if killed + len(survivors) == sample:
                break
            why = known.get((mutant.path.name, mutant.before, mutant.after))
            if why is not None:
                equivalent.append((mutant, why))
                continue
            outcome = tests.of(mutant)
            killed += outcome.verdict in ("killed", "timed out")
            if outcome.verdict == "survived":
                survivors.append(mutant)
            _tell(mutant, outcome)
    return Score(
        len(mutants), killed + len(survivors), killed, tuple(survivors), tuple(equivalent),
        time.monotonic() - start, tests.seconds,
    )  # fmt: skip


def _tell(mutant: Mutant, outcome: Outcome) -> None:
    where = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
    by = outcome.by.rpartition("::")[2][:60]
    said = f"{outcome.verdict:9} {outcome.seconds:5.1f} s  {where}  {mutant.before} -> {mutant.after}  [{by}]"
    typer.echo(said, err=True)


def table(scores: dict[str, Score]) -> str:
    """Return the table and the lists of survivors in Markdown."""
    lines = ["| package | faults | tried | found | share | at least |", "|---|---|---|---|---|---|"]
    for name, score in scores.items():
        lines.append(
            f"| `{name}` | {score.mutants:,} | {score.tried:,} | {score.killed:,} | {score.share:.0%} "
            f"| {SUBJECTS[name].least:.0%} |"
        )
    for name, score in scores.items():
        if score.survivors or score.equivalent:
            lines += ["", f"Not found in `{name}`:", ""]
        lines += [f"- {_shown(mutant)}" for mutant in sorted(score.survivors, key=_place)]
        lines += [f"- {_shown(mutant)}: {why}" for mutant, why in sorted(score.equivalent, key=lambda e: _place(e[0]))]
    return "\n".join(lines)


def _place(mutant: Mutant) -> tuple[str, int]:
    return mutant.path.name, mutant.line


def _shown(mutant: Mutant) -> str:
    return f"`{mutant.path.name}`, `{mutant.before}` became `{mutant.after}`"


@app.command()
def bench(
    packages: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SUBJECTS)}; all without any.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of faults to try per package.")] = 40,
    seed: Annotated[int, typer.Option(help="Random seed for the faults and their order.")] = 0,
    page: Annotated[Path | None, typer.Option(help="A page with a place for the table.")] = None,
    json: JsonOption = None,
) -> None:
    """Try faults in each package; exit 1 if the tests find too few of them."""
    chosen = packages or list(SUBJECTS)
    if unknown := [name for name in chosen if name not in SUBJECTS]:
        raise InputError(f"no package {', '.join(unknown)}: name some of {', '.join(SUBJECTS)}")
    if page:
        pages.around(page, NAME)  # refused before the work
    import_large(LARGE)
    scores = {name: measure(SUBJECTS[name], sample, seed) for name in chosen}
    rows = [
        [name, f"{score.mutants:,}", f"{score.tried:,}", f"{score.killed:,}", f"{score.share:.0%}"]
        for name, score in scores.items()
    ]
    print_table("Faults that the tests find", ["package", "faults", "tried", "found", "share"], rows)
    if page:
        pages.replace(page, NAME, table(scores))
    plain = {
        name: {
            **{key: value for key, value in asdict(score).items() if key not in ("survivors", "equivalent")},
            "survivors": [f"{each.path.name}:{each.line} {each.before} -> {each.after}" for each in score.survivors],
        }
        for name, score in scores.items()
    }
    write_json(json, {"seed": seed, "sample": sample, "packages": plain})
    low = [f"{name} {score.share:.0%}" for name, score in scores.items() if score.share < SUBJECTS[name].least]
    if low:
        raise CheckError(f"the tests find too few faults: {', '.join(low)}")


if __name__ == "__main__":
    run(app)
