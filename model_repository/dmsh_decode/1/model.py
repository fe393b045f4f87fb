"""dmsh_decode for Triton's Python backend: a thin adapter, the work is in dmsh_serving."""

from typing import Any

from dmsh_serving.triton.backend import open_decoder


class TritonPythonModel:
    """What the backend looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load, check, and be ready to answer; an error here keeps the model from being served."""
        self.model = open_decoder(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests together, each with its tensors or its own error."""
        return self.model.respond(requests)

    def finalize(self) -> None:
        """Let go of threads and memory."""
        self.model.close()
