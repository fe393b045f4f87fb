"""The paper's claim on networks trained from scratch: do several scales retrieve better than the last alone?

    python -m benchmarks.paper                      # part of `make paper`; about 90 minutes on 2 idle cores
    python -m benchmarks.paper --smoke              # four epochs on a few images: does all of it run?

Trains every configuration of ``experiments/paper.toml``, exports each checkpoint and holds it to 0 wrong bits. A run
that is finished is kept below ``--work`` and not repeated, so a stopped experiment goes on where it was. Its section
of docs/results.md is written only once every run is there.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import page as pages
from benchmarks.paper.configurations import Experiment, read_experiment
from benchmarks.paper.page import SECTION, spread, values_of, write_page
from benchmarks.paper.runs import Run, finished, perform_all, refused_exports, runs_of
from dmsh_serving import console
from dmsh_serving.commands import make_app
from dmsh_serving.errors import CheckError, InputError
from dmsh_serving.program import run

app = make_app("Train DMSH, its ablations and a baseline over data sets, bits and seeds; write the results.")


@app.command()
def paper(
    experiment: Annotated[Path, typer.Option(help="What to train.")] = Path("experiments/paper.toml"),
    work: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("build/paper"),
    page: Annotated[Path, typer.Option(help="The page to write the tables into.")] = Path("docs/results.md"),
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = os.cpu_count() or 1,
    minutes: Annotated[float, typer.Option(help="What it should take at most; told when it will not.")] = 90,
    plan: Annotated[bool, typer.Option("--plan", help="Stop after one run of each kind, and print the plan.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Few images, four epochs, fewest bits, one seed, MNIST alone; no page.")
    ] = False,
    json: console.JsonOption = None,
) -> None:
    """Perform the runs that are left, print mAP of all, and write the page."""
    what = read_experiment(experiment)
    if smoke:
        what = _smallest(what)
    if not smoke:
        pages.around(page, SECTION)
    for data in what.data:
        if data.source.startswith("build/") and not Path(data.source).exists():
            raise InputError(
                f"{data.source} is not there: make it with python -m benchmarks.paper.clipart, or name another"
            )
    work.mkdir(parents=True, exist_ok=True)
    runs = runs_of(what, smoke=smoke)
    probes = [run for run in runs if (run.bits, run.seed) == (max(what.bits), what.seeds[0])]
    results = _perform(probes, work, jobs, "one run of each kind")
    left = [run for run in runs if run not in probes and finished(run, work) is None]
    _print_plan(probes, results, left, jobs, minutes)
    if plan:
        return
    results |= _perform(runs, work, jobs, "training")
    _print_results(what, results)
    console.write_json(json, {"runs": results})
    if not smoke:
        write_page(page, what, results, f"{os.cpu_count()} cores, {jobs} trainings at a time")
        console.console().print(f"wrote {page}: what it means is for a person to write")
    if refused := refused_exports(results):
        raise CheckError("; ".join(refused))


def _smallest(experiment: Experiment) -> Experiment:
    from dmsh_model.data.load import MNIST_5K

    data = tuple(each for each in experiment.data if each.source == MNIST_5K)
    return Experiment(experiment.configurations, data, (min(experiment.bits),), experiment.seeds[:1])


def _perform(runs: list[Run], work: Path, jobs: int, what: str) -> dict[str, dict[str, Any]]:
    with console.progress() as display:
        task = display.add_task(what, total=len(runs))

        def show(run: Run, result: dict[str, Any]) -> None:
            display.update(task, advance=1, description=f"{run.name}: mAP {result['retrieval']['map_all']:.4f}")

        return perform_all(runs, work, jobs, show)


def _print_plan(
    probes: list[Run], results: dict[str, dict[str, Any]], left: list[Run], jobs: int, minutes: float
) -> None:
    rows, total = [], 0.0
    for probe in probes:
        seconds = results[probe.name]["seconds"]
        same = sum((run.data, run.configuration) == (probe.data, probe.configuration) for run in left)
        total += seconds * same
        rows.append([probe.data.name, probe.configuration.name, f"{seconds:.0f} s", str(same)])
    console.print_table("The plan: one run of each was timed", ["data", "configuration", "a run", "runs left"], rows)
    whole = total / jobs / 60
    ends = time.strftime("%H:%M", time.localtime(time.time() + 60 * whole))
    say = console.console().print
    say(f"{len(left)} runs are left, about {whole:.0f} minutes, {jobs} at a time: until {ends}")
    if whole > minutes:
        say(f"That is more than {minutes:g} minutes: an idle machine, or fewer epochs in the configurations, help")


def _print_results(what: Experiment, results: dict[str, dict[str, Any]]) -> None:
    for data in what.data:
        console.print_table(
            f"{data.name}: mAP@all in points, mean ± spread of {len(what.seeds)} seeds",
            ["configuration", *(f"{bits} bits" for bits in what.bits)],
            [
                [each.title, *(spread(values_of(results, data.name, each.name, bits)) for bits in what.bits)]
                for each in what.configurations
            ],
        )
    compared = sum(result["parity"]["bits_compared"] for result in results.values())
    median = statistics.median(result["seconds"] for result in results.values())
    refused = len(refused_exports(results))
    console.console().print(
        f"{len(results)} exports of {compared:,} bits, {refused} refused for a wrong bit; a run took {median:.0f} s"
    )


if __name__ == "__main__":
    run(app)
