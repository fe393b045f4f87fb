"""The demo's report.html: one file, no script, nothing loaded from elsewhere."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmsh_export.choose_runtime import MODEL, OPENVINO_MODEL
from dmsh_export.compare.latency import Latency
from dmsh_export.compare.parity import ParityReport, TargetParity
from dmsh_export.demo import encoders as demo_encoders
from dmsh_export.demo.machines import MachineResult
from dmsh_export.prove.bound_rows import LayerBound
from dmsh_export.prove.certificate import Certificate
from dmsh_serving.files import write_atomically

__all__ = ["DemoPage", "Neighbours", "speed_name", "step_name", "write_page"]


@dataclass(frozen=True)
class Neighbours:
    """One query (H, W, 3) uint8 and its nearest images (k, H, W, 3), distances (k,), and whether of its class (k,)."""

    query: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]
    distances: npt.NDArray[np.int32]
    same_class: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DemoPage:
    """The contents of the page.

    Attributes:
        fingerprint: the code space that is served.
        parity: the float exports, the integer dialects, and Triton.
        certificate: of the integer model that is served.
        plan: whether a TensorRT plan was built, one line.
        machines: those on which the integer codes were compared.
        figures: ``map_last_stage`` (of one scale), ``map_float``, ``map_integer``, ``map_triton``, and the shares
            ``equal_bits`` and ``equal_codes``.
        speeds: of the encoders.
        latency: of single queries through Triton.
        seconds: each of these queries.
        margins: |logit| of every bit of the float network.
        worst_error: largest difference between its logits and those of its exports.
        queries: queries with their neighbours.
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
    from jinja2 import Environment, PackageLoader, StrictUndefined

    targets = [target for report in page.parity for target in report.targets]
    figures = page.figures
    templates = Environment(
        loader=PackageLoader("dmsh_export.demo"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = templates.get_template("report.html").render(
        page=page,
        cards=[
            (f"{sum(target.bits_compared for target in targets):,}", "bits compared with PyTorch"),
            (f"{sum(target.wrong_bits for target in targets):,}", "wrong bits"),
            (f"{100 * figures['map_triton']:.1f}", f"mAP@all in integers (float: {100 * figures['map_float']:.1f})"),
            (f"{page.latency.p50_ms:.1f} ms", f"median query over gRPC (p99 {page.latency.p99_ms:.1f} ms)"),
        ],
        scales=[
            ("the last stage alone", f"{figures['map_last_stage']:.4f}"),
            ("three scales, fused", f"{figures['map_float']:.4f}"),
        ],
        parity=[_parity_row(target) for target in targets],
        bounds=[_bound_row(bound) for bound in page.certificate.bounds],
        machines=[
            (machine.machine, machine.fingerprint[:12], f"{machine.bits:,}", f"{machine.wrong_bits:,}")
            for machine in page.machines
        ],
        precision=[
            ("float codes, PyTorch", f"{figures['map_float']:.6f}"),
            ("integer codes, PyTorch", f"{figures['map_integer']:.6f}"),
            ("integer codes, Triton", f"{figures['map_triton']:.6f}"),
        ],
        equal_bits=f"{figures['equal_bits']:.3%}",
        equal_codes=f"{figures['equal_codes']:.1%}",
        speeds=[
            (speed_name(speed), speed.batch, f"{speed.p50_ms:.2f}", f"{speed.images_per_s:,.0f}")
            for speed in page.speeds
        ],
        queries=[_row(query) for query in page.queries],
        worst_error=f"{page.worst_error:.1e}",
        margin_plot=_margin_plot(page),
        latency_plot=_latency_plot(page),
    )
    write_atomically(path, text.encode())


def step_name(target: TargetParity) -> str:
    """Return the name of a target for a reader of the demo."""
    names = {
        demo_encoders.FLOAT: "float: ONNX, folded",
        demo_encoders.UNFOLDED: "float: ONNX, as trained",
        MODEL: "integer: ONNX Runtime's dialect",
        f"{OPENVINO_MODEL} in OpenVINO": "integer: OpenVINO's dialect",
        demo_encoders.FOR_TENSORRT: "integer: TensorRT's dialect",
    }
    return names.get(target.target, "integer: Triton, over gRPC")


def speed_name(speed: Latency) -> str:
    """Return the name of a timed encoder for a reader of the demo."""
    names = {
        demo_encoders.FLOAT: "float, ONNX Runtime",
        MODEL: "integer, ONNX Runtime",
        f"{OPENVINO_MODEL} in OpenVINO": "integer, OpenVINO",
    }
    return names.get(speed.target, "float, PyTorch")


def _parity_row(target: TargetParity) -> tuple[str, ...]:
    return (
        step_name(target),
        f"{target.images:,}",
        f"{target.bits_compared:,}",
        f"{target.wrong_bits:,}",
        f"{target.worst_logit_error:.1e}" if target.worst_logit_error else "0",
        f"{target.invariance.codes_compared:,}",
        f"{target.invariance.wrong_codes:,}",
    )


def _bound_row(bound: LayerBound) -> tuple[str, ...]:
    return (bound.node, bound.kind, f"{bound.peak:,}", f"{bound.peak / 2**24:.1%}")


def _row(query: Neighbours) -> dict[str, Any]:
    return {
        "image": _webp(query.query),
        "neighbours": [
            {"image": _webp(image), "distance": int(distance), "kind": "same" if same else "other"}
            for image, distance, same in zip(query.images, query.distances, query.same_class, strict=True)
        ],
    }


def _webp(image: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
