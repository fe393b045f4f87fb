"""Changes of one thing in an integer ONNX model, which a proof must see."""

import numpy as np
from onnx import helper, numpy_helper


def node(model, name):
    return next(found for found in model.graph.node if found.name == name)


def constant(model, name):
    return next(found for found in model.graph.initializer if found.name == name)


def change(model, name, edit):
    """Replace a constant by ``edit`` of a copy of it."""
    tensor = constant(model, name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor).copy()), name))


def give(model, name, position, value):
    """Give a node a constant of its own."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{name}.own{position}"))
    node(model, name).input[position] = f"{name}.own{position}"


def with_first(value):
    def edit(array):
        array.flat[0] = value
        return array

    return edit


def attribute(model, name, key, value=None):
    """Give a node an attribute, or take it away."""
    found = node(model, name)
    kept = [entry for entry in found.attribute if entry.name != key]
    del found.attribute[:]
    found.attribute.extend(kept if value is None else [*kept, helper.make_attribute(key, value)])


def bypass(model, name):
    gone = node(model, name)
    for other in model.graph.node:
        for position, source in enumerate(other.input):
            if source == gone.output[0]:
                other.input[position] = gone.input[0]
    model.graph.node.remove(gone)


def zero(model, value):
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), "zero"))
    return "zero"


def scale_residual(model, factor):
    """Give the sum of feature maps another factor."""
    give(model, "4_residual.shift", 1, factor)


def multiply_again(model, name):
    insert_after(model, name, "Mul", node(model, name).input[1])


def insert_after(model, name, operator, *further):
    """Put an operator with ``further`` inputs between a node and all that read it."""
    nodes = list(model.graph.node)
    where = next(index for index, found in enumerate(nodes) if found.name == name)
    source = nodes[where].output[0]
    for other in nodes[where + 1 :]:
        other.input[:] = ["smuggled" if entry == source else entry for entry in other.input]
    nodes.insert(where + 1, helper.make_node(operator, [source, *further], ["smuggled"], name="smuggled"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def give_input(model, name, tensor):
    node(model, name).input[0] = tensor


def swap_inputs(model, name):
    found = node(model, name)
    found.input[:] = found.input[::-1]
