import json

import pytest

from raylm.engine.schema import read_schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {}}, "'not' at #"),
        ({"type": "object", "requird": []}, "'requird' at # is not supported; did you mean 'requi"),
        ({"properties": {"a": {"uniqueItems": True}}}, "'uniqueItems' at #/properties/a"),
        ({"anyOf": [{"if": {}}]}, "'if' at #/anyOf"),
        ({"items": {"nullable": True}}, "'nullable' at #/items"),
        ({"additionalProperties": {"contains": {}}}, "'contains' at #/additionalProperties"),
        ({"$defs": {"x": {"dependentRequired": {}}}}, "'dependentRequired' at #/$defs/x"),
        ({"x-guidance": {"lenient": True}}, "'x-guidance' at #"),
    ],
)
def test_keywords_that_cannot_be_enforced_are_refused_by_name_and_place(schema, says):
    with pytest.raises(ValueError, match="not supported") as error:
        read_schema(json.dumps(schema))
    assert says in str(error.value)


def test_names_and_values_are_no_keywords():
    schema = {
        "title": "t",
        "properties": {"not": {"const": {"if": 1}}, "if": {"enum": [{"not": 1}]}},
        "default": {"not": 1},
        "examples": [{"if": 1}],
        "patternProperties": {"^not": True},
        "items": False,
    }
    assert read_schema(json.dumps(schema)) == schema
