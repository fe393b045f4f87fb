"""``dmsh-train``: train a DMSH network, and measure how well its codes retrieve."""

from dmsh_model.cli.evaluate import evaluate
from dmsh_model.cli.fit import fit
from dmsh_serving import console

app = console.make_app("Train a Deep Multi-Scale Hashing network, and measure its retrieval.")
app.command()(fit)
app.command()(evaluate)


def main() -> None:
    """Run the command line."""
    console.run(app)
