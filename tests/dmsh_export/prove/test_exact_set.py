"""The exact set is what the page says, what the readers read, and no more than the writers write."""

import integer_networks as networks
import pytest
from onnx import defs
from project import ROOT

from dmsh_export.graph import Dialect
from dmsh_export.prove.exact_set import EXACT_SET, form_of
from dmsh_export.prove.integer_from_onnx import OPSETS, READERS
from dmsh_export.prove.nodes import Node
from dmsh_export.to_onnx.dialects import onnx_from_network

PAGE = (ROOT / "docs" / "integer.md").read_text()
HEADING = "| operator | dialects | inputs | attributes |\n|---|---|---|---|\n"


def rows_of(page):
    """The table of the page: {operator: (dialects, inputs, {attribute: values})}."""
    table = page.partition(HEADING)[2].partition("\n\n")[0]
    rows = {}
    for line in table.splitlines():
        name, dialects, inputs, attributes = (cell.strip() for cell in line.strip("|").split("|"))
        pairs = (pair.split(" = ") for pair in attributes.split("; ") if pair)
        rows[name] = (dialects.split(", "), inputs.split(", "), dict(pairs))
    return rows


def test_the_table_of_the_page_is_the_set_in_the_code():
    code = {
        form.name: (
            list(form.dialects),
            list(form.inputs),
            {name: allowed.text for name, allowed in form.attributes.items()},
        )
        for form in EXACT_SET
    }
    assert rows_of(PAGE) == code
    assert f"opsets {OPSETS[0]} to {OPSETS[-1]}" in PAGE


def test_each_form_has_a_reader_and_each_reader_a_form():
    assert sorted(form.name for form in EXACT_SET) == sorted(READERS)


def test_the_forms_of_one_operator_in_a_dialect_differ_in_their_attributes():
    told_apart = [
        (form.operator, dialect, frozenset(form.attributes)) for form in EXACT_SET for dialect in form.dialects
    ]
    assert len(set(told_apart)) == len(told_apart)


def test_onnx_knows_each_attribute_and_that_many_inputs():
    for form in EXACT_SET:
        schema = defs.get_schema(form.operator, OPSETS[0], "")
        assert set(form.attributes) <= set(schema.attributes), form.name
        assert schema.min_input <= len(form.inputs) <= schema.max_input, form.name
        required = {name for name, attribute in schema.attributes.items() if attribute.required}
        assert required <= set(form.attributes), form.name


@pytest.mark.parametrize("dialect", Dialect.__args__)
def test_the_writer_uses_every_form_of_its_dialect_so_none_is_there_for_nothing(dialect):
    model = onnx_from_network(networks.network(), dialect, 20)
    used = {form_of(Node(proto, {}), dialect).name for proto in model.graph.node}
    assert used == {form.name for form in EXACT_SET if dialect in form.dialects}


@pytest.mark.parametrize(
    "form", [form for form in EXACT_SET if "strides" in form.attributes], ids=lambda form: form.name
)
@pytest.mark.parametrize(("name", "count"), [("kernel_shape", 2), ("strides", 2), ("pads", 4), ("dilations", 2)])
def test_a_window_has_as_many_numbers_as_it_has_sides(form, name, count):
    allowed = form.attributes[name]
    accepted = [given for given in ([1] * number for number in range(6)) if allowed.accepts(given)]
    assert accepted == [[1] * count]
    assert not allowed.accepts(1)
