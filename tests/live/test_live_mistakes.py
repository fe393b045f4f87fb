"""Mistakes in configurations that the linter names, and what the real Triton does with them."""

import re

import pytest
import tritonclient.grpc as triton
from live_world import CODES, World
from tritonclient.utils import InferenceServerException

from dmsh_export.lint.repository import lint_repository
from dmsh_serving.contract import RANKER_MODEL
from dmsh_serving.errors import InputError


@pytest.fixture
def mistaken(tmp_path):
    """Put a mistake into a model's configuration; return the world and what the linter says."""

    def put(model, old, new):
        world = World.make(tmp_path)
        path = world.repository / model / "config.pbtxt"
        text = " ".join(path.read_text().split())
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return world, [finding.problem for finding in lint_repository(world.repository).findings]

    return put


@pytest.mark.parametrize(
    ("model", "old", "new", "found", "refused"),
    [
        ("dmsh_decode", 'name: "dmsh_decode"', 'name: "dmsh_decode" version_policy { specific { versions: [3] } }',
         "version_policy asks for version 3", "dmsh_decode does not load: at least one version must be available"),
        ("dmsh_decode", "max_batch_size: 8", "max_batch: 8",
         "it cannot be parsed: 1:", 'dmsh_decode does not load: .*no field named "max_batch"'),
        ("dmsh_search", 'input_map { key: "code" value: "code"', 'input_map { key: "code" value: "k"',
         r"input code takes TYPE_UINT8 \[8\], k is TYPE_INT64", "in ensemble dmsh_search, .* inconsistent data type"),
    ],
)  # fmt: skip
def test_what_the_linter_finds_triton_refuses_with_its_reason(mistaken, model, old, new, found, refused):
    world, problems = mistaken(model, old, new)
    assert len([problem for problem in problems if re.search(found, problem)]) == 1, problems
    with pytest.raises(InputError, match=refused):
        world.server().start()


def test_a_model_of_sequences_starts_and_refuses_every_search(mistaken):
    world, problems = mistaken(RANKER_MODEL, "dynamic_batching { }", "sequence_batching { }")
    assert problems == [
        "sequence_batching: requests of a search belong to no sequence, and Triton refuses those without one"
    ]
    with world.server() as server, triton.InferenceServerClient(server.url) as client:
        tensor = triton.InferInput("code", [1, 8], "UINT8").set_data_from_numpy(CODES[:1])
        with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
            client.infer(RANKER_MODEL, [tensor])
