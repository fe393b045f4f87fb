"""The dashboard and the alert rules ask for metrics that the code exports, by their names and labels."""

import json
import re
import sys
import types

import pytest
import yaml
from project import ROOT

FOLDER = ROOT / "docs" / "monitoring"
# Of Triton; tests/live/test_live_health.py finds them in a server's answer. Prometheus itself adds up.
OTHERS = {
    "up", "nv_inference_pending_request_count", "nv_inference_count", "nv_inference_exec_count",
    "nv_inference_queue_duration_us", "nv_inference_request_success", "nv_inference_request_failure",
}  # fmt: skip
WORDS = {
    "or",
    "sum",
    "by",
    "rate",
    "increase",
    "delta",
    "time",
    "histogram_quantile",
    "le",
    "reason",
    "instance",
    "model",
}


def expressions():
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules]


def asked(expression):
    """Return {metric: labels that are asked of it} of an expression in PromQL."""
    found = {}
    for name, labels in re.findall(
        r"\b([a-z]\w+)\b(?:\{([^}]*)\})?(?!\s*=~?\")", re.sub(r"\[[^\]]*\]", "", expression)
    ):
        if name not in WORDS and not re.search(rf'"[^"]*{name}[^"]*"', expression):
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*=~?", labels))
    return found


@pytest.fixture
def exported(monkeypatch):
    """{metric: its labels} of everything that the three models register."""
    found = {}

    class Family:
        COUNTER, GAUGE = "counter", "gauge"

        def __init__(self, name, description, kind):
            self.name = name
            assert description
            assert (kind == "counter") == name.endswith(("_total", "_bucket", "_sum", "_count"))

        def Metric(self, labels):  # noqa: N802 - as Triton calls it
            found.setdefault(self.name, set()).update(labels)
            return self

        def set(self, value):
            pass

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.SimpleNamespace(MetricFamily=Family))
    from dmsh_serving.triton.metrics import ModelMetrics, RankerMetrics

    for step in ("decode", "encode"):
        ModelMetrics(step)
    RankerMetrics()
    return found


def test_every_figure_of_the_dashboard_and_the_alerts_is_exported_with_its_labels(exported):
    assert len(expressions()) > 20
    for expression in expressions():
        names = asked(expression)
        assert names, expression
        for name, labels in names.items():
            assert name in exported.keys() | OTHERS, f"{name} in {expression}"
            if name in exported:
                assert labels - {"instance", "job"} <= exported[name], expression


def test_a_name_or_a_label_that_is_not_exported_is_seen():
    assert asked('rate(dmsh_gone_total{reason="x", instance=~"$instance"}[5m]) > 0') == {
        "dmsh_gone_total": {"reason", "instance"}
    }


def test_every_figure_of_ours_is_in_the_documents(exported):
    text = (ROOT / "docs" / "serving.md").read_text()
    missing = [
        name for name in exported if name not in text and re.sub(r"_(decode|encode|rank)_", "_STEP_", name) not in text
    ]
    assert missing == []


def test_the_proxy_compares_its_token_letter_by_letter_and_whole():
    (keys,) = re.findall(
        r"map \$http_authorization \$known \{\n(.*?)\n  \}", (FOLDER / "nginx.conf").read_text(), re.DOTALL
    )
    # What begins with ~ regards case; what is between \Q and \E is taken literally; ^ and $ leave nothing around it.
    assert [line.strip() for line in keys.splitlines()] == ["default 0;", r'"~^Bearer \QCHANGE-ME\E$" 1;']
