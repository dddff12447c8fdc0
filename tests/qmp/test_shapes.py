"""What a type accepts, and in which words it refuses."""

import pytest

from cowtree.qmp.shapes import Alternate, Enum, Shapes, Struct, Type, Union, full_name
from cowtree.qmp.wire import GENERIC_ERROR, CommandFailed, Json

SHAPES = Shapes(
    {
        "Colour": Enum(("red", "blue")),
        "Dot": Struct({"x": "int", "*colour": "Colour"}),
        "Line": Struct({"ends": ["Dot"], "*width": "uint16"}),
        "Figure": Union({"*name": "str", "kind": "Colour"}, "kind", {"red": "Dot"}),
        "Place": Alternate(("str", "Dot", "null")),
        "Paint": Alternate(("Colour", "Dot")),
        "Plan": Struct({"place": "Place", "*paints": ["Paint"], "*rest": "any"}),
    }
)


def refused(kind: Type, value: Json) -> str:
    with pytest.raises(CommandFailed) as caught:
        SHAPES.check(kind, value)
    assert caught.value.kind == GENERIC_ERROR
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("Dot", {"x": -1}),
        ("Dot", {"x": 1, "colour": "red"}),
        ("Line", {"ends": []}),
        ("Line", {"ends": [{"x": 0}, {"x": 1}], "width": 65535}),
        ("Figure", {"kind": "blue"}),
        ("Figure", {"kind": "red", "x": 1, "name": ""}),
        ("Plan", {"place": "here"}),
        ("Plan", {"place": None, "paints": ["red", {"x": 1}], "rest": [{}]}),
        ("uint64", -1),
        ("uint64", (1 << 64) - 1),
        (["bool"], [True, False]),
    ],
)
def test_what_fits_is_accepted(kind: Type, value: Json):
    SHAPES.check(kind, value)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("Dot", {}, "Parameter 'x' is missing"),
        ("Dot", {"x": 1, "y": 2}, "Parameter 'y' is unexpected"),
        ("Dot", {"x": True}, "Invalid parameter type for 'x', expected: integer"),
        ("Dot", {"x": 1.0}, "Invalid parameter type for 'x', expected: integer"),
        ("Dot", {"x": 1 << 63}, "Invalid parameter type for 'x', expected: integer"),
        ("Dot", {"x": 1, "colour": None}, "Invalid parameter type for 'colour', expected: string"),
        ("Dot", {"x": 1, "colour": "green"}, "Parameter 'colour' does not accept value 'green'"),
        ("Dot", {"x": 1, "": 2}, "Parameter '' is unexpected"),
        ("Line", {"ends": {}}, "Invalid parameter type for 'ends', expected: array"),
        ("Line", {"ends": [{"x": 1}, 1]}, "Invalid parameter type for 'ends[1]', expected: object"),
        ("Line", {"ends": [{"x": 1}, {}]}, "Parameter 'ends[1].x' is missing"),
        ("Line", {"ends": [{"x": 1, "colour": "green"}]}, "Parameter 'colour' does not accept value 'green'"),
        ("Line", {"ends": [], "width": 65536}, "Parameter 'width' expects uint16_t"),
        ("Line", {"ends": [], "width": 1.5}, "Parameter 'width' expects uint64"),
        ("Figure", {"x": 1}, "Parameter 'kind' is missing"),
        ("Figure", {"kind": "red"}, "Parameter 'x' is missing"),
        ("Figure", {"kind": "blue", "x": 1}, "Parameter 'x' is unexpected"),
        ("Plan", {"place": 1}, "Invalid parameter type for 'place', expected: Place"),
        ("Plan", {"place": {"x": ""}}, "Invalid parameter type for 'place.x', expected: integer"),
        ("Plan", {"place": "", "paints": [1]}, "Invalid parameter type for 'null', expected: Paint"),
        ("Plan", {"place": "", "paints": ["green"]}, "Parameter 'null' does not accept value 'green'"),
        (["Colour"], ["green"], "Parameter 'null' does not accept value 'green'"),
        ("uint64", 1 << 64, "Parameter '<anonymous>' expects uint64"),
        ("bool", 1, "Invalid parameter type for '<anonymous>', expected: boolean"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(kind: Type, value: Json, reason: str):
    assert refused(kind, value) == reason


def test_a_name_shows_the_way():
    assert full_name(("actions", 0, "data", "node")) == "actions[0].data.node"
    assert full_name(()) == "<anonymous>"


def test_a_union_has_the_members_of_its_branch():
    figure = SHAPES.all["Figure"]
    assert isinstance(figure, Union)
    assert set(SHAPES.members_of(figure, {"kind": "red"})) == {"*name", "kind", "x", "*colour"}
    assert set(SHAPES.members_of(figure, {"kind": "blue"})) == {"*name", "kind"}
