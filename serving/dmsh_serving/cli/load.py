"""``dmsh-serve load``: put a load on a running Triton and measure what it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dmsh_serving.cli.tls import CaOption, CertOption, KeyOption, TlsOption, TokenOption
from dmsh_serving.console import JsonOption, console, print_table, progress, write_json
from dmsh_serving.contract import DEFAULT_K, SEARCH_FILE_MODEL, SEARCH_MODEL
from dmsh_serving.errors import CheckError, InputError

if TYPE_CHECKING:
    from dmsh_serving.load.measure import Measured, Measuring
    from dmsh_serving.load.objectives import Objective
    from dmsh_serving.load.send import Load
    from dmsh_serving.load.triton import Content, TritonTarget

_MOST_CLIENTS: Final = 128  # of a sweep
_GAIN: Final = 1.05  # in throughput, that a sweep goes on for
_PANEL_LOAD, _PANEL_TIME = "Load", "Measuring"


def load(
    target: Annotated[
        str, typer.Argument(help="Server and model: host:port/model.  [default model: a search of what --images has]")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of image files, or an .npy file of images.  [default: random images]"),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(help="Closed loop: clients that wait for their answers. Repeat it.", rich_help_panel=_PANEL_LOAD),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Open loop: requests per second, whatever the answers do. Repeat it.", rich_help_panel=_PANEL_LOAD
        ),
    ] = None,
    fixed: Annotated[
        bool,
        typer.Option("--fixed", help="With --rate: equal gaps, not those of chance.", rich_help_panel=_PANEL_LOAD),
    ] = False,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="1, 2, 4, ... clients, while throughput grows.", rich_help_panel=_PANEL_LOAD),
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Images per request.", rich_help_panel=_PANEL_LOAD)] = 1,
    k: Annotated[int, typer.Option("-k", "--k", help="Results per query.", rich_help_panel=_PANEL_LOAD)] = DEFAULT_K,
    warm_up: Annotated[
        float, typer.Option(min=0, help="Seconds before anything counts.", rich_help_panel=_PANEL_TIME)
    ] = 2.0,
    window: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds per window; three in a row must agree within 10%.", rich_help_panel=_PANEL_TIME
        ),
    ] = 2.0,
    windows: Annotated[int, typer.Option(min=3, help="Most windows per load.", rich_help_panel=_PANEL_TIME)] = 10,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a request may take.", rich_help_panel=_PANEL_TIME)
    ] = 30.0,
    slo: Annotated[
        list[str] | None, typer.Option(help="An objective, such as p99=5ms; if it is missed, the exit code is 1.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw latency over throughput to this .svg file.")] = None,
    tls: TlsOption = False,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    token_file: TokenOption = None,
    json: JsonOption = None,
) -> None:
    """Put a load on a server; measure latency, throughput and errors.

    A second table says where its models spend the time. The latency of an open loop counts from when a request was due,
    not from when it could be sent. A --sweep meets an objective if one of its loads does; loads that are named must all
    meet it.
    """
    from dmsh_serving.load.measure import Measuring
    from dmsh_serving.load.objectives import Objective
    from dmsh_serving.load.plot import checked_plot_path, write_plot
    from dmsh_serving.load.send import Closed, Open
    from dmsh_serving.load.triton import TritonTarget, parse_target
    from dmsh_serving.tls import client_tls, read_token

    if sweep and (concurrency or rate):
        raise InputError("--sweep chooses the loads: leave --concurrency and --rate out")
    if fixed and not rate:
        raise InputError("--fixed is for an open loop: give --rate")
    objectives = [Objective.parse(text) for text in slo or []]
    loads: list[Load] = [Closed(clients) for clients in concurrency or ([] if rate else [1])]
    loads += [Open(each, "fixed" if fixed else "poisson") for each in rate or []]
    if plot is not None:
        checked_plot_path(plot)
    url, model = parse_target(target, SEARCH_FILE_MODEL if images is not None and images.is_dir() else SEARCH_MODEL)
    measuring = Measuring(warm_up, window, windows)
    files, token = client_tls(tls, tls_ca, tls_cert, tls_key), read_token(token_file)
    with TritonTarget(
        url, model, _content(images), batch=batch, k=k, timeout=timeout, tls=files, token=token
    ) as opened:
        done = (
            _swept(opened, batch, measuring, timeout) if sweep else _measured(opened, loads, batch, measuring, timeout)
        )
    _report(f"{url}/{model}, {batch} image(s) per request, {opened.distinct_requests} different requests", done)
    missed = _missed(done, objectives, one_is_enough=sweep)
    write_json(json, {"target": f"{url}/{model}", "loads": [each.to_dict() for each in done], "missed": missed})
    if plot is not None:
        write_plot(plot, done, objectives, f"{model} at {url}")
    if missed:
        raise CheckError("; ".join(missed))


def _content(images: Path | None) -> "Content":
    import numpy as np

    from dmsh_serving.files import read_regular
    from dmsh_serving.images.decode import MAX_FILE_BYTES
    from dmsh_serving.images.read import image_paths, load_npy

    if images is None:
        return None
    if images.suffix == ".npy" and not images.is_dir():
        return np.asarray(load_npy(images, "images, uint8 [N, H, W, 3]"), np.uint8)
    if not images.is_dir():
        raise InputError(f"{images}: give a folder of image files, or an .npy file")
    paths = image_paths(images)
    if not paths:
        raise InputError(f"{images} holds no images")
    return [read_regular(path, MAX_FILE_BYTES) for path in paths[:1024]]


def _measured(
    target: "TritonTarget", loads: "Sequence[Load]", batch: int, measuring: "Measuring", timeout: float
) -> "list[Measured]":
    from dmsh_serving.load.measure import measure

    done = []
    with progress() as bar:
        for each in loads:
            task = bar.add_task(str(each), total=measuring.most_windows)
            done.append(
                measure(
                    target,
                    each,
                    batch=batch,
                    measuring=measuring,
                    counts=target.counts,
                    drain_seconds=timeout + 1,
                    on_window=lambda number, task=task: bar.update(task, completed=number),  # type: ignore[misc]
                )
            )
    return done


def _swept(target: "TritonTarget", batch: int, measuring: "Measuring", timeout: float) -> "list[Measured]":
    """Double the clients as long as that brings throughput."""
    from dmsh_serving.load.send import Closed

    done: list[Measured] = []
    clients = 1
    while clients <= _MOST_CLIENTS:
        done += _measured(target, [Closed(clients)], batch, measuring, timeout)
        if len(done) > 1 and done[-1].requests_per_s < _GAIN * done[-2].requests_per_s:
            break
        clients *= 2
    return done


def _missed(done: "Sequence[Measured]", objectives: "Sequence[Objective]", *, one_is_enough: bool) -> list[str]:
    lines = [[line for each in objectives if (line := each.missed_by(measured))] for measured in done]
    if one_is_enough and not all(lines):
        return []
    return [line for each in lines for line in each]


def _report(title: str, done: "Sequence[Measured]") -> None:
    from dmsh_serving.load.measure import PERCENTILES
    from dmsh_serving.load.objectives import knee_of

    knee = knee_of(done) if len(done) > 1 else None
    print_table(
        title,
        ["load", "images/s", *(f"{name}, ms" for name in PERCENTILES), "answered", "errors", ""],
        [
            [
                str(each.load),
                f"{each.images_per_s:,.1f}",
                *(_ms(each.milliseconds(name)) for name in PERCENTILES),
                str(len(each.seconds)),
                ", ".join(f"{count} {kind}" for kind, count in sorted(each.errors.items())) or "0",
                ", ".join(["knee"] * (each is knee) + ["not stable"] * (not each.stable)),
            ]
            for each in done
        ],
    )
    rows = [
        [
            str(each.load),
            model.model,
            f"{model.requests / each.span_seconds:,.1f}",
            f"{model.rows_per_call:.1f}",
            *(f"{ms:.3f}" for ms in (model.total_ms, model.queue_ms, model.compute_ms)),
        ]
        for each in done
        for model in each.models
    ]
    if rows:
        print_table(
            "by the server's own account, means",
            ["load", "model", "requests/s", "images per call", "in all, ms", "queue", "compute"],
            rows,
        )
    if any(not each.stable for each in done):
        console().print("not stable: no three windows in a row agreed within 10%: measure longer, or a calmer machine")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
