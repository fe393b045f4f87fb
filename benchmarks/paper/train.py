r"""Train one configuration of ``experiments/`` on any data set.

    python -m benchmarks.paper.train experiments/vgg19_cifar10.toml --data cifar10-54000:data \
        --pretrained vgg19.safetensors --bits 48 --out build/vgg19-48

torchrun starts it in several processes, a GPU each: torchrun --nproc-per-node 4 -m benchmarks.paper.train ...
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.paper.configurations import read_configuration, with_seed
from dmsh_model.cli.data_option import CacheOption, read_labelled, refuse_split_options
from dmsh_model.config import HashConfig
from dmsh_serving import console
from dmsh_serving.commands import make_app
from dmsh_serving.images.framing import Framing
from dmsh_serving.program import run

app = make_app("Train one configuration of experiments/ on any data set.")


@app.command()
def train(
    configuration: Annotated[Path, typer.Argument(help="A TOML file of experiments/.")],
    data: Annotated[str, typer.Option(help="As dmsh-train fit takes it.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    bits: Annotated[int, typer.Option(help="Bits of a code.")] = 48,
    seed: Annotated[int, typer.Option(help="Random seed for the split, the weights and the data order.")] = 0,
    queries_per_class: Annotated[
        int | None, typer.Option(help="Held-out queries per class, for data without a split of its own.")
    ] = None,
    train_per_class: Annotated[int | None, typer.Option(help="Most training images per class, likewise.")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="Weights of the backbone: .safetensors, .pt, .pth.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at --out.")] = False,
    cache: CacheOption = None,
    json: console.JsonOption = None,
) -> None:
    """Write the checkpoint and print mAP@all of the held-out queries."""
    read = read_configuration(configuration)
    from dmsh_model.data.load import MNIST_5K
    from dmsh_model.data.split import SplitOptions
    from dmsh_model.training import run as training
    from dmsh_model.training.distributed import started_by_torchrun
    from dmsh_model.weights.read import read_pretrained

    labelled = read_labelled(data, read.image_size, Framing(), False, cache)
    counts = {"--queries-per-class": queries_per_class, "--train-per-class": train_per_class}
    refuse_split_options(labelled, counts)
    default = SplitOptions()
    trained = training.fit(
        read.hash_config(bits, len(labelled.class_names), digits=data == MNIST_5K),
        labelled,
        SplitOptions(
            default.queries_per_class if queries_per_class is None else queries_per_class,
            default.train_per_class if train_per_class is None else train_per_class,
            seed,
        ),
        with_seed(read, seed),
        out,
        pretrained=read_pretrained(str(pretrained), str(read.network.get("backbone", HashConfig.backbone)))
        if pretrained
        else None,
        resume=resume,
        overwrite=overwrite,
    )
    if started_by_torchrun().first:
        console.console().print(f"{out}: mAP@all {trained.map_all:.4f}")
        console.write_json(json, {"out": str(out), **trained.record})


if __name__ == "__main__":
    run(app)
