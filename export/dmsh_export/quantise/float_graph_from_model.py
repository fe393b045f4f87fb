"""A trained DMSH network -> :class:`FloatGraph`: folded in float64, and only operators that integers do exactly."""

import copy
import dataclasses
import math
import operator
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.drop import DropPath
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dmsh_export.quantise.float_graph import (
    Add,
    Affine,
    Centre,
    Concat,
    FloatGraph,
    FloatLayer,
    GlobalMax,
    GlobalMean,
    Image,
    MaxPool,
    Operation,
    computed,
    used_layers,
)
from dmsh_export.to_onnx.fold import batch_norm_affine, fold
from dmsh_model.network import DMSH, Lateral, Normalise
from dmsh_serving.errors import InputError

__all__ = ["float_graph"]

SUPPORTED = (
    "convolution (grouped and depthwise too), linear, batch norm, ReLU, ReLU6, max and average pooling, addition, "
    "concatenation"
)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_NOTHING = (nn.Identity, nn.Dropout, DropPath)


def float_graph(model: DMSH, *, centred: bool = False) -> FloatGraph:
    """Return the network in eval mode as a float graph; batch norm and normalisation are folded in float64.

    With ``centred``, :class:`Centre` comes first, so that zero padding pads with the mean, as in ``model``. Without it,
    zero padding pads with the value 128, and the graph has one layer fewer.

    Raises:
        InputError: the integer network lacks an operator; names the node, the operator and the supported ones.
    """
    folded, steps = fold(copy.deepcopy(model).double())
    if not isinstance(folded.backbone, fx.GraphModule):
        (reason,) = [step.why for step in steps if step.what == "BN of the backbone"]
        raise InputError(f"backbone {model.config.backbone} has no integer form: {reason}")
    builder = _Builder(model.config.backbone, folded.normalise, model.config.image_size, centred)
    vectors = []
    features = builder.backbone(folded.backbone)
    for number, (scale, feature) in enumerate(zip(folded.scales, features, strict=True)):
        if isinstance(scale, Lateral):
            feature = builder.module(f"lateral {number}", scale.conv, feature)
            feature = builder.module(f"lateral {number} activation", scale.get_submodule("activation"), feature)
        pooling: Operation = GlobalMax() if model.config.pooling == "max" else GlobalMean()
        vectors.append(builder.add(f"pooled {number}", pooling, feature))
    value = builder.add("scales", Concat(), *vectors) if len(vectors) > 1 else vectors[0]
    *front, last = folded.head
    for module in front:
        value = builder.module("fusion", module, value)
    builder.module("logits", last, value)
    return builder.graph()


class _Builder:
    """Adds layers one by one and runs each on an example without data, which gives the shapes."""

    def __init__(self, backbone: str, normalise: Normalise | nn.Module, size: int, centred: bool) -> None:
        assert isinstance(normalise, Normalise)  # fold leaves it as it is
        self._backbone = backbone
        self._mean, self._std = normalise.mean.flatten().double(), normalise.std.flatten().double()
        self._layers = [FloatLayer("image", Image(size), ())]
        self._examples = [torch.empty(1, 3, size, size, device="meta")]  # a shape without data
        self._shared: set[int] = set()
        self._offset = 128 - self._mean  # turns the layer that stands for the image into the image minus its mean
        self._image = 0
        if centred:
            self._image = self.add("centred", Centre(tuple(self._mean.tolist())), 0)
            self._offset = torch.zeros_like(self._mean)

    def graph(self) -> FloatGraph:
        layers = used_layers(self._layers)
        kept = {id(layer.operation): example for layer, example in zip(self._layers, self._examples, strict=True)}
        return FloatGraph(layers, tuple(tuple(kept[id(layer.operation)].shape[1:]) for layer in layers))

    def backbone(self, traced: fx.GraphModule) -> list[int]:
        """Add a traced backbone and return the layers of its features."""
        index: dict[fx.Node, int] = {}
        for node in traced.graph.nodes:
            if node.op == "output":
                features = node.args[0]
                return [index[feature] for feature in (features if isinstance(features, list | tuple) else [features])]
            inputs = [index[source] for source in node.all_input_nodes]
            if node.op == "placeholder":
                index[node] = self._image
            elif node.op == "call_module":
                index[node] = self.module(str(node.target), traced.get_submodule(str(node.target)), inputs[0])
            elif node.op in ("call_function", "call_method"):
                index[node] = self._function(node, inputs)
            else:
                raise self._refusal(node.name, node.op)
            if len(node.users) > 1 or any(user.op == "output" for user in node.users):
                self._shared.add(index[node])
        raise InputError(f"backbone {self._backbone} returns nothing")

    def _function(self, node: fx.Node, inputs: list[int]) -> int:
        if node.target in _RELUS:
            return self._clip(node.name, inputs[0], 0, math.inf)
        if node.target in _ADDITIONS:
            operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
            if len(operands) == 2 and len(inputs) == 2 and not node.kwargs:
                return self.add(node.name, Add(), *inputs)
        if node.target in (torch.cat, torch.concat):
            parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if axis == 1 and isinstance(parts, list | tuple) and len(parts) == len(inputs):
                return self.add(node.name, Concat(), *inputs) if len(inputs) > 1 else inputs[0]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
        raise self._refusal(node.name, name)

    def module(self, name: str, module: nn.Module, source: int) -> int:
        """Add a module applied to the layer ``source`` and return the layer of its output."""
        match module:
            case nn.Sequential():
                for part in module:
                    source = self.module(name, part, source)
                return source
            case nn.Conv2d():
                return self._affine(name, _affine_of_convolution(module, self._examples[source]), source)
            case nn.Linear():
                return self._affine(name, Affine(module.weight.detach(), module.bias.detach()), source)
            case nn.BatchNorm2d():
                scale, shift = (each.detach() for each in batch_norm_affine(module))
                source = self._affine(name, Affine(scale.view(-1, 1, 1, 1), shift, groups=len(scale)), source)
                return self.module(name, getattr(module, "act", nn.Identity()), source)  # timm's BN may carry one
            case nn.ReLU():
                return self._clip(name, source, 0, math.inf)
            case nn.ReLU6():
                return self._clip(name, source, 0, 6)
            case nn.MaxPool2d() | nn.AvgPool2d() if _partial_windows(module, self._examples[source]):
                height, width = self._examples[source].shape[2:]
                raise self._refusal(name, f"{type(module).__name__} with partial windows on {height} x {width}")
            case nn.MaxPool2d():
                kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
                return self.add(name, MaxPool(kernel, stride, (*padding, *padding), _pair(module.dilation)), source)
            case nn.AvgPool2d():
                return self._affine(name, _affine_of_average(module, self._examples[source]), source)
            case _ if isinstance(module, _NOTHING):
                return source
        raise self._refusal(name, type(module).__name__)

    def add(self, name: str, operation: Operation, *inputs: int) -> int:
        """Add a layer and return its index."""
        if self._image in inputs and not isinstance(operation, Affine | Centre):
            raise self._refusal(name, f"{type(operation).__name__} of the image itself")
        layer = FloatLayer(name, operation, inputs)
        self._examples.append(computed(layer, [self._examples[source] for source in inputs]))
        self._layers.append(layer)
        return len(self._layers) - 1

    def _affine(self, name: str, affine: Affine, source: int) -> int:
        if source == self._image:
            scale, offset = 1 / self._std, self._offset / self._std
            if affine.groups > 1:
                raise self._refusal(name, "grouped convolution of the image itself")
            bias = affine.bias + (affine.weight.sum((2, 3)) @ offset)
            affine = dataclasses.replace(affine, weight=affine.weight * scale.view(1, -1, 1, 1), bias=bias)
        return self.add(name, affine, source)

    def _clip(self, name: str, source: int, low: float, high: float) -> int:
        layer = self._layers[source]
        # A layer that is also used unclipped, or that cannot clip, gets an identity convolution that clips.
        if source in self._shared or not isinstance(layer.operation, Affine | Add):
            example = self._examples[source]
            shape = (example.shape[1], 1, 1, 1)
            ones = torch.ones(shape, dtype=torch.float64)
            source = self.add(name, Affine(ones, torch.zeros(shape[0]).double(), groups=shape[0]), source)
            layer = self._layers[source]
        self._layers[source] = dataclasses.replace(layer, low=max(low, layer.low), high=min(high, layer.high))
        return source

    def _refusal(self, node: str, operation: str) -> InputError:
        return InputError(
            f"backbone {self._backbone} has no integer form: node {node} is {operation}, supported are {SUPPORTED}"
        )


def _affine_of_convolution(module: nn.Conv2d, example: Tensor) -> Affine:
    height, width = (int(side) for side in example.shape[2:])
    stride, dilation = _pair(module.stride), _pair(module.dilation)
    if isinstance(module, Conv2dSame):
        pads = [
            max((math.ceil(side / step) - 1) * step + (kernel - 1) * spread + 1 - side, 0)
            for side, step, kernel, spread in zip((height, width), stride, module.kernel_size, dilation, strict=True)
        ]
        padding = (pads[0] // 2, pads[1] // 2, pads[0] - pads[0] // 2, pads[1] - pads[1] // 2)
    elif isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise InputError(f"a convolution with padding {module.padding!r} ({module.padding_mode}) has no integer form")
    else:
        padding = (*_pair(module.padding), *_pair(module.padding))
    bias = module.bias.detach() if module.bias is not None else torch.zeros(module.out_channels, dtype=torch.float64)
    return Affine(module.weight.detach(), bias, stride, padding, dilation, module.groups)


def _affine_of_average(module: nn.AvgPool2d, example: Tensor) -> Affine:
    """Return an average over full windows as a depthwise convolution with equal weights."""
    channels, kernel, padding = int(example.shape[1]), _pair(module.kernel_size), _pair(module.padding)
    weight = torch.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=torch.float64)
    bias = torch.zeros(channels, dtype=torch.float64)
    return Affine(weight, bias, _pair(module.stride), (*padding, *padding), groups=channels)


def _partial_windows(module: nn.MaxPool2d | nn.AvgPool2d, example: Tensor) -> bool:
    """Whether ``ceil_mode`` adds windows that reach past the edge, or an average divides by another number."""
    if isinstance(module, nn.AvgPool2d):
        if any(_pair(module.padding)) and not module.count_include_pad:
            return True
        if module.divisor_override:
            return True
    full = copy.copy(module)
    full.ceil_mode = False
    return bool(module(example).shape != full(example).shape)


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple) else (value, value)
