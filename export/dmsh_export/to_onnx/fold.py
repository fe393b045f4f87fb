"""Fold what is linear: BN into convolutions, the lateral 1x1 convolutions and the fusion layer into one Gemm.

Average pooling and a linear lateral commute, so the lateral runs on pooled vectors (1x1 instead of HxW positions).
Lateral, concatenation and fusion layer are then one linear map. If the fusion has no activation, the hash layer joins
it. Every product is computed in float64 and rounded once.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn

from dmsh_model.config import Pooling
from dmsh_model.network import DMSH, Lateral, global_pool, laterals_of

__all__ = ["FoldStep", "FoldedDMSH", "batch_norm_affine", "fold"]


@dataclass(frozen=True)
class FoldStep:
    """One candidate for folding: its name, whether it was folded, and the reason."""

    what: str
    folded: bool
    why: str


class FoldedDMSH(nn.Module):
    """The same function as :class:`DMSH` with fewer layers. Image UINT8 [N, H, W, 3] -> logits FP32 [N, K]."""

    def __init__(self, normalise: nn.Module, backbone: nn.Module, scales: nn.ModuleList, head: nn.Sequential) -> None:
        super().__init__()
        self.normalise = normalise
        self.backbone = backbone
        self.scales = scales
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Image UINT8 [N, H, W, 3] -> logits [N, K]."""
        features = self.backbone(self.normalise(image))
        vectors = [scale(feature) for scale, feature in zip(self.scales, features, strict=True)]
        logits: Tensor = self.head(torch.cat(vectors, 1))
        return logits


class _Pool(nn.Module):
    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, feature: Tensor) -> Tensor:
        return global_pool(feature, self.pooling)


class _LeafBatchNorm(fx.Tracer):
    """Traces timm's features; its BN with activation and its self-padding convolution stay one node each."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, BatchNormAct2d | Conv2dSame) or super().is_leaf_module(module, name)


def fold(model: DMSH) -> tuple[FoldedDMSH, list[FoldStep]]:
    """Return a folded copy of ``model`` (eval mode), and for each candidate whether it was folded and why."""
    model = copy.deepcopy(model).eval()
    steps: list[FoldStep] = []
    backbone = _fold_backbone(model.backbone, len(model.taps), steps)
    scales, head = _fold_head(model, steps)
    steps.append(FoldStep("normalisation into the first convolution", False, "zero padding comes after it"))
    return FoldedDMSH(model.normalise, backbone, scales, head).eval(), steps


def _fold_backbone(backbone: nn.Module, features: int, steps: list[FoldStep]) -> nn.Module:
    try:
        graph = _LeafBatchNorm().trace(backbone)
        (output,) = (node.args[0] for node in graph.nodes if node.op == "output")
        missing = features - (len(output) if isinstance(output, list | tuple) else 1)
        if missing:  # timm's FeatureHookNet: hooks of a module that is traced as one node do not run
            raise RuntimeError(f"{missing} of {features} features come from hooks")
    except (fx.proxy.TraceError, TypeError, RuntimeError, NameError) as error:
        reason = " ".join(str(error).split())
        steps.append(FoldStep("BN of the backbone", False, f"the backbone cannot be traced: {reason}"))
        return backbone
    traced = fx.GraphModule(backbone, graph)
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        what = f"BN {node.target}"
        source = node.args[0]
        conv = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            steps.append(FoldStep(what, False, "what feeds it is no convolution"))
            continue
        if len(source.users) > 1:
            steps.append(FoldStep(what, False, f"the output of {source.target} is used elsewhere too"))
            continue
        _set_module(traced, source.target, _conv_with_norm(conv, norm))
        # timm's BN carries the activation that follows it; a plain BN leaves nothing.
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        _set_module(traced, node.target, rest)
        steps.append(FoldStep(what, True, f"into {source.target}"))
    return traced


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _conv_with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution that computes ``norm(conv(x))`` in eval mode."""
    scale, shift = batch_norm_affine(norm)
    folded = copy.deepcopy(conv)
    bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(shift)
    folded.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1)).to(conv.weight.dtype))
    folded.bias = nn.Parameter((bias * scale + shift).to(conv.weight.dtype))
    return folded


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), float64 (C,), of a BN in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a BN without running statistics has no fixed scale")
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    return scale, shift


def _fold_head(model: DMSH, steps: list[FoldStep]) -> tuple[nn.ModuleList, nn.Sequential]:
    config = model.config
    laterals = laterals_of(model)
    linear = config.lateral_activation == "none" and config.pooling == "avg"
    if not linear:
        reason = (
            f"{config.pooling} pooling is not linear"
            if config.pooling != "avg"
            else f"a {config.lateral_activation} stands between the lateral and its pooling"
        )
        for lateral in laterals:
            lateral.conv = _conv_with_norm(lateral.conv, lateral.norm)
            lateral.norm = nn.Identity()  # type: ignore[assignment]
        steps.append(FoldStep("BN of the laterals", True, "into their 1x1 convolutions"))
        steps.append(FoldStep("laterals onto pooled vectors", False, reason))
        steps.append(FoldStep("laterals and fusion into one Gemm", False, reason))
        scales = nn.ModuleList(laterals)
        fusion = model.fusion
    else:
        steps.append(FoldStep("BN of the laterals", True, "into their 1x1 convolutions"))
        steps.append(FoldStep("laterals onto pooled vectors", True, "average pooling and a linear lateral commute"))
        steps.append(FoldStep("laterals and fusion into one Gemm", True, "no nonlinearity stands between"))
        scales = nn.ModuleList(_Pool("avg") for _ in laterals)
        fusion = _product(_block_diagonal(laterals), model.fusion)
    if config.fusion_activation == "none":
        steps.append(FoldStep("fusion and hash layer into one Gemm", True, "no nonlinearity stands between"))
        return scales, nn.Sequential(_product(fusion, model.hash))
    steps.append(FoldStep("fusion and hash layer into one Gemm", False, f"a {config.fusion_activation} stands between"))
    return scales, nn.Sequential(fusion, model.fusion_activation, model.hash)


def _block_diagonal(laterals: list[Lateral]) -> nn.Linear:
    """Return the one linear map (float64) of all laterals on the concatenated pooled features."""
    weights, biases = [], []
    for lateral in laterals:
        scale, shift = batch_norm_affine(lateral.norm)
        weights.append(lateral.conv.weight.double().flatten(1) * scale.view(-1, 1))
        biases.append(shift)
    weight: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
    return _linear(weight, torch.cat(biases), torch.float64)


def _product(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Return the linear map ``second(first(x))``, computed in float64, in the dtype of ``second``."""
    weight = second.weight.double() @ first.weight.double()
    bias = second.weight.double() @ first.bias.double() + second.bias.double()
    return _linear(weight, bias, second.weight.dtype)


def _linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
    layer.weight = nn.Parameter(weight.to(dtype))
    layer.bias = nn.Parameter(bias.to(dtype))
    return layer
