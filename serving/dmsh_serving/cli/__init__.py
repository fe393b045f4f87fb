"""``dmsh-serve``: start Triton, query it, load it, keep galleries, measure the search."""

from dmsh_serving.cli import gallery_contents, gallery_remote  # noqa: F401  # their commands join gallery_app
from dmsh_serving.cli.bench import bench
from dmsh_serving.cli.gallery import gallery_app
from dmsh_serving.cli.health import check, status
from dmsh_serving.cli.load import load
from dmsh_serving.cli.query import query
from dmsh_serving.cli.start import start
from dmsh_serving.cli.web import web
from dmsh_serving.commands import command, make_app
from dmsh_serving.program import run

app = make_app("Serve an exact image search with Triton, and ask it.", "dmsh-serve")
app.add_typer(gallery_app, name="gallery")
command(app, "dmsh-serve bench --bits 64 --codes 100000 -k 10")(bench)
command(app, "dmsh-serve web --images photos --gallery build/gallery")(web)


command(
    app,
    "dmsh-serve start --repository build/repository",
)(start)
command(app, "dmsh-serve check 127.0.0.1:8001 --gallery build/gallery")(check)
command(app, "dmsh-serve status 8001", "dmsh-serve status 8001 --json status.json")(status)
command(
    app,
    "dmsh-serve query photos/red/photos-00.png -k 3",
    "dmsh-serve query more -k 5 --images photos --sheet build/neighbours.html",
)(query)
command(
    app,
    "dmsh-serve load 127.0.0.1:8001 --images photos --concurrency 1 --window 0.5",
    "dmsh-serve load 127.0.0.1:8001 --images photos --rate 20 --window 0.5 --slo p90=5s",
)(load)


def main() -> None:
    """Run the command line."""
    run(app)
