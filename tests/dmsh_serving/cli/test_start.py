"""``start`` without a server; tests/live has the rest."""

import resource

import pytest

from dmsh_serving.cli.start import _allow_descriptors


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 20), (1 << 16, 1 << 20)),
        ((1024, resource.RLIM_INFINITY), (1 << 16, resource.RLIM_INFINITY)),
        ((1 << 20, 1 << 20), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_idle_connections_may_take_more_descriptors_than_a_process_usually_has(monkeypatch, limits, wanted):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: asked.append((what, pair)))
    _allow_descriptors()
    assert asked == ([] if wanted is None else [(resource.RLIMIT_NOFILE, wanted)])
