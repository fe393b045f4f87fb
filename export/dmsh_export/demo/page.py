"""The demo's report.html: one file, no script, nothing loaded from elsewhere."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_export.compare.latency import Latency
from dmsh_export.compare.parity import ParityReport, TargetParity
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo.machines import MachineResult
from dmsh_export.prove.certificate import Certificate, LayerBound
from dmsh_serving.files import write_atomically

_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --good: #1f8a4c; --bad: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem; margin: 2.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { color: var(--soft); max-width: 46rem; } code { font-size: .9em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .4rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.4rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1.2rem; flex: 1; min-width: 9rem; }
.card b { display: block; font-size: 1.6rem; } .card span { color: var(--soft); font-size: .9rem; }
.row { display: flex; gap: .4rem; align-items: flex-start; margin-bottom: .5rem; }
figure { margin: 0; text-align: center; font-size: .75rem; color: var(--soft); }
figure img { width: 3.6rem; height: 3.6rem; image-rendering: pixelated; border-radius: .25rem;
  border: 3px solid transparent; display: block; }
.query img { border-color: var(--ink); } .query { margin-right: 1rem; }
.same img { border-color: var(--good); } .other img { border-color: var(--bad); }
svg { width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Neighbours:
    """One query (H, W, 3) uint8 and its nearest images (k, H, W, 3), distances (k,), and whether of its class (k,)."""

    query: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]
    distances: npt.NDArray[np.int32]
    same_class: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DemoPage:
    """What the page shows.

    Attributes:
        fingerprint: the code space that is served.
        parity: the float exports, both integer dialects, and Triton.
        certificate: of the integer model that is served.
        plan: what became of the TensorRT plan, one line.
        machines: on which the integer codes were compared.
        figures: ``map_float``, ``map_integer``, ``map_triton``, and the shares ``equal_bits`` and ``equal_codes``.
        speeds: of the encoders.
        latency: of single queries through Triton, and ``seconds`` each of them.
        margins: |logit| of every bit of the float network, and ``worst_error`` the largest of its exports.
        queries: shown with their neighbours.
    """

    fingerprint: str
    parity: tuple[ParityReport, ...]
    certificate: Certificate
    plan: str
    machines: tuple[MachineResult, ...]
    figures: dict[str, float]
    speeds: tuple[Latency, ...]
    latency: Latency
    seconds: tuple[float, ...]
    margins: npt.NDArray[np.float32]
    worst_error: float
    queries: tuple[Neighbours, ...]


def write_page(path: Path, page: DemoPage) -> None:
    """Write ``page`` as one HTML file."""
    targets = [target for report in page.parity for target in report.targets]
    figures = page.figures
    cards = [
        (f"{sum(target.bits_compared for target in targets):,}", "bits compared with PyTorch"),
        (f"{sum(target.wrong_bits for target in targets):,}", "wrong bits"),
        (f"{figures['map_triton']:.4f}", f"mAP@all in integers (float: {figures['map_float']:.4f})"),
        (f"{page.latency.p50_ms:.1f} ms", f"median query over gRPC (p99 {page.latency.p99_ms:.1f} ms)"),
    ]
    bound_columns = ("layer", "kind", "largest sum", "of 2<sup>24</sup>")
    bounds = _table(bound_columns, [_bound_row(bound) for bound in page.certificate.bounds])
    shown_cards = "".join(
        f'<div class="card"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in cards
    )
    body = f"""<h1>DMSH: served, and still the same</h1>
<p>A trained Deep Multi-Scale Hashing model, quantised to integers, exported to ONNX, served by NVIDIA Triton, queried
over gRPC. Code space <code>{html.escape(page.fingerprint[:16])}</code>.</p>
<div class="cards">{shown_cards}</div>
<h2>Every bit, at every step</h2>
{
        _table(
            (
                "",
                "images",
                "bits compared",
                "wrong bits",
                "worst logit error",
                "codes in batches of 1 to 32",
                "changed",
            ),
            [_parity_row(target) for target in targets],
        )
    }
<p>A float export may be off by rounding noise, which flips a bit wherever a logit lies closer to 0. The integer network
has none: its logits are equal, not near.</p>
<h2>Why no machine can change an integer code</h2>
<p>Read back from the ONNX graph alone: every tensor, weight and bias an integer, every scale a power of two, and the
largest sum that any image can drive an accumulator to. Below 2<sup>24</sup> it is exact in int32 and FP32 alike,
in any order.</p>
{bounds}
<p>TensorRT plan of the same network: {html.escape(page.plan)}.</p>
<h2>Where the integer codes were compared</h2>
{
        _table(
            ("machine", "bits compared", "wrong bits"),
            [
                (html.escape(machine.machine), f"{machine.bits:,}", f"{machine.wrong_bits:,}")
                for machine in page.machines
            ],
        )
    }
<p>{
        ""
        if len(page.machines) > 1
        else "<code>make test-cpus</code> adds emulated ones: AVX2 without VNNI, and ARM64."
    }</p>
<h2>What integers cost</h2>
{
        _table(
            ("", "mAP@all"),
            [
                ("float codes, PyTorch", f"{figures['map_float']:.6f}"),
                ("integer codes, PyTorch", f"{figures['map_integer']:.6f}"),
                ("integer codes, Triton's answers", f"{figures['map_triton']:.6f}"),
            ],
        )
    }
<p>{figures["equal_bits"]:.3%} of the bits and {
        figures["equal_codes"]:.1%} of the codes are the float network's. It is a
code space of its own: the gallery was encoded with it.</p>
<h2>How fast the encoder is</h2>
{
        _table(
            ("", "batch", "p50 ms", "images/s"),
            [
                (speed_name(speed), speed.batch, f"{speed.p50_ms:.2f}", f"{speed.images_per_s:,.0f}")
                for speed in page.speeds
            ],
        )
    }
<h2>Queries and their nearest images</h2>
<p>The held-out query on the left, then what Triton answered, nearest first, with the Hamming distance. Green: of the
query's class. Red: of another. The last rows are the queries with the most mixed neighbours.</p>
{"".join(_row(query) for query in page.queries)}
<h2>How far the float logits are from the threshold</h2>
<p>A bit is 1 where its logit is above 0. The distance of every float logit from 0, beside the largest difference seen
between PyTorch's logits and an export's ({page.worst_error:.1e}): where no bar reaches left of the line,
no bit of these images flips. For the integer network that line would stand at 0.</p>
{_margin_plot(page)}
<h2>Latency of a single query</h2>
<p>Image in, neighbours out, over gRPC, one at a time, {len(page.seconds)} queries.</p>
{_latency_plot(page)}"""
    document = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>DMSH demo</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>{body}</body></html>\n'
    )
    write_atomically(path, document.encode())


def step_name(target: TargetParity) -> str:
    """Return what a target is to a reader of the demo."""
    names = {
        demo_encoders.FLOAT: "float: ONNX, folded",
        demo_encoders.UNFOLDED: "float: ONNX, as trained",
        demo_encoders.INTEGER: "integer: ONNX Runtime's dialect",
        demo_encoders.FOR_TENSORRT: "integer: TensorRT's dialect",
    }
    return names.get(target.target, "integer: Triton, over gRPC")


def speed_name(speed: Latency) -> str:
    """Return what a timed encoder is to a reader of the demo."""
    names = {demo_encoders.FLOAT: "float, ONNX Runtime", demo_encoders.INTEGER: "integer, ONNX Runtime"}
    return names.get(speed.target, "float, PyTorch")


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"


def _parity_row(target: TargetParity) -> tuple[str, ...]:
    return (
        html.escape(step_name(target)),
        f"{target.images:,}",
        f"{target.bits_compared:,}",
        f"{target.wrong_bits:,}",
        f"{target.worst_logit_error:.1e}" if target.worst_logit_error else "0",
        f"{target.invariance.codes_compared:,}",
        f"{target.invariance.wrong_codes:,}",
    )


def _bound_row(bound: LayerBound) -> tuple[str, ...]:
    return (html.escape(bound.node), bound.kind, f"{bound.peak:,}", f"{bound.peak / 2**24:.1%}")


def _row(query: Neighbours) -> str:
    figures = [f'<figure class="query"><img src="{_png(query.query)}" alt="query">query</figure>']
    for image, distance, same in zip(query.images, query.distances, query.same_class, strict=True):
        kind = "same" if same else "other"
        figures.append(f'<figure class="{kind}"><img src="{_png(image)}" alt="{kind} class">{distance}</figure>')
    return f'<div class="row">{"".join(figures)}</div>'


def _png(image: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _margin_plot(page: DemoPage) -> str:
    figure, axes = _axes(3.2)
    smallest = float(min(page.margins.min(), page.worst_error)) or 1e-9
    bins = np.geomspace(smallest / 2, float(page.margins.max()), 90)
    axes.hist(page.margins, bins=bins, color="#3b6ea8")
    axes.axvline(page.worst_error, color="#c0392b")
    axes.annotate(
        "worst logit error", (page.worst_error, 0.9), xycoords=("data", "axes fraction"), xytext=(6, 0),
        textcoords="offset points", color="#c0392b",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="|logit|", ylabel="bits")
    return _svg(figure)


def _latency_plot(page: DemoPage) -> str:
    figure, axes = _axes(2.8)
    milliseconds = 1e3 * np.asarray(page.seconds)
    axes.hist(milliseconds, bins=60, range=(0, float(np.percentile(milliseconds, 99.5))), color="#3b6ea8")
    for value, name in ((page.latency.p50_ms, "p50"), (page.latency.p99_ms, "p99")):
        axes.axvline(value, color="#1c2430", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name} {value:.1f} ms", (value, 0.9), xycoords=("data", "axes fraction"), xytext=(6, 0),
            textcoords="offset points",
        )  # fmt: skip
    axes.set(xlabel="milliseconds", ylabel="queries")
    return _svg(figure)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
