"""Schemas and the prompts made of them."""

import pytest

from erniem_fast.inference.schema import MAX_NAMES, MAX_NESTING, Node, parse_schema, prompt_of

OPINIONS = {"评价维度": ["观点词", "情感倾向[正向，负向]"]}


def names(nodes: tuple[Node, ...]) -> dict:
    return {node.name: names(node.children) for node in nodes}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("时间", {"时间": {}}),
        (["时间", "选手"], {"时间": {}, "选手": {}}),
        (("时间",), {"时间": {}}),
        ({"人物": None, "地点": [], "机构": {}}, {"人物": {}, "地点": {}, "机构": {}}),
        ({"人物": "出生地"}, {"人物": {"出生地": {}}}),
        ({"人物": {"作品": {"出版社": ["地址"]}}}, {"人物": {"作品": {"出版社": {"地址": {}}}}}),
        (["时间", {"赛事": ["主办方", {"选手": "得分"}], "地点": None}],
         {"时间": {}, "赛事": {"主办方": {}, "选手": {"得分": {}}}, "地点": {}}),
        ({"a": ["b"], "b": ["a", "b"]}, {"a": {"b": {}}, "b": {"a": {}, "b": {}}}),
        (OPINIONS, {"评价维度": {"观点词": {}, "情感倾向[正向，负向]": {}}}),
    ],
)  # fmt: skip
def test_schemas_of_every_form(schema: object, expected: dict) -> None:
    assert names(parse_schema(schema)) == expected


def test_one_list_may_be_used_twice() -> None:
    shared = ["时间", {"地点": "国家"}]
    below = {"时间": {}, "地点": {"国家": {}}}
    assert names(parse_schema({"会议": shared, "比赛": shared})) == {"会议": below, "比赛": below}


@pytest.mark.parametrize(
    ("name", "parent", "language", "expected"),
    [
        ("时间", None, "zh", "时间"),
        (" Person ", None, "en", "Person"),
        ("出生地", "李白", "zh", "李白的出生地"),
        ("Birthplace", "Ada Lovelace", "en", "Birthplace of Ada Lovelace"),
        ("成绩（分）", "ＡＢＣ～　！", "zh", "ABC~　!的成绩(分)"),
        ("Price [EUR]", "bike", "zh", "bike的Price [EUR]"),
        ("Price [EUR]", "bike", "en", "Price of bike [EUR]"),
    ],
)
def test_prompts(name: str, parent: str | None, language: str, expected: str) -> None:
    (node,) = parse_schema(name)
    assert prompt_of(node, parent, language) == (expected, (), ())


@pytest.mark.parametrize(
    ("name", "parent", "language", "expected", "options"),
    [
        ("情感倾向[正向，负向]", None, "zh", "情感倾向[正向,负向]", ("正向", "负向")),
        ("情感倾向[正向，负向]", "屏幕", "zh", "屏幕的情感倾向[正向,负向]", ("正向", "负向")),
        ("Sentiment [ good,bad , so so]", None, "en", "Sentiment [ good,bad , so so]", ("good", "bad", "so so")),
        ("Sentiment [ good,bad , so so]", "a[b,c]", "en", "Sentiment of a[b,c] [ good,bad , so so]",
         ("good", "bad", "so so")),
        ("a［ｂ，ｃ］", "x", "en", "a of x [b,c]", ("ｂ", "ｃ")),
        ("a[a,aa,a a]", None, "zh", "a[a,aa,a a]", ("a", "aa", "a a")),
        ("level[low[1],high[2]]", None, "zh", "level[low[1],high[2]]", ("low[1]", "high[2]")),
    ],
)  # fmt: skip
def test_prompts_with_options(name: str, parent: str | None, language: str, expected: str, options: tuple) -> None:
    (node,) = parse_schema(name)
    prompt = prompt_of(node, parent, language)
    assert prompt.text == expected
    assert prompt.names == options
    # In the prompt they are in half width, and lie in the bracket at its end, in order.
    assert "".join(prompt.text[first:end] for first, end in prompt.options) == "".join(options).translate(
        {ord("ｂ"): "b", ord("ｃ"): "c"}
    )
    assert min(prompt.options)[0] > len(expected) - len(name)
    assert list(prompt.options) == sorted(prompt.options)


def looped(kind: str) -> object:
    schema: dict = {"a": ["b"]}
    if kind == "dict":
        schema["c"] = schema
    elif kind == "list":
        schema["a"].append({"d": schema["a"]})
    else:
        schema["a"].append(schema)
    return schema


def deep(levels: int) -> object:
    schema: object = "x"
    for _ in range(levels):
        schema = {"a": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "error", "message"),
    [
        (None, TypeError, "schema is None; expected a name, a list"),
        (7, TypeError, "schema is of type int; expected a name, a list"),
        (b"a", TypeError, "schema is of type bytes"),
        ({"a"}, TypeError, "schema is of type set"),
        ({"a": {"b": 1.5}}, TypeError, r"schema\['a'\]\['b'\] is of type float"),
        (["a", None], TypeError, r"schema\[1\] is of type NoneType; expected a name, or a dict"),
        ([["a"]], TypeError, r"schema\[0\] is of type list; expected a name, or a dict"),
        ({"a": [{2: "b"}]}, TypeError, r"schema\['a'\]\[0\] has a key of type int"),
        ([], ValueError, "schema is empty"),
        ({}, ValueError, "schema is empty"),
        ([{}], ValueError, "schema is empty"),
        ("", ValueError, "schema has the name ''; expected one that is not empty"),
        ({"a": ["b", " \t\u3000"]}, ValueError, r"schema\['a'\]\[1\] has the name ' \\t"),
        ({"": None}, ValueError, r"schema\[''\] has the name ''"),
        (["a", "b", "a"], ValueError, "schema holds the name 'a' twice"),
        (["a", {"a": "b"}], ValueError, "schema holds the name 'a' twice"),
        ({"x": [{"a": None}, {"a": "b"}]}, ValueError, r"schema\['x'\] holds the name 'a' twice"),
        ("a[b,,c]", ValueError, "expected name.option,option. with no option empty or twice"),
        ("a[b, ]", ValueError, "no option empty"),
        ("a[b,c, b ]", ValueError, "no option empty or twice"),
        ("a[b，ｂ]", ValueError, "no option empty or twice"),
        ("[b,c]", ValueError, "expected name.option,option."),
        (looped("dict"), ValueError, r"schema\['c'\] is a schema that holds itself"),
        (looped("list"), ValueError, r"schema\['a'\]\[1\]\['d'\] is a schema that holds itself"),
        (looped("both"), ValueError, r"schema\['a'\]\[1\] is a schema that holds itself"),
        (deep(100_000), ValueError, f"nests more than {MAX_NESTING} lists and dicts"),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        parse_schema(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_deepest_schema() -> None:
    assert names(parse_schema(deep(MAX_NESTING)))


def test_a_schema_of_too_many_names():
    """Twenty dicts, each in two places of the one above: a million names."""
    schema = "name"
    for _ in range(20):
        schema = {"one": schema, "other": schema}
    with pytest.raises(ValueError, match=f"more than {MAX_NAMES} names"):
        parse_schema(schema)
    assert len(parse_schema([str(number) for number in range(MAX_NAMES)])) == MAX_NAMES
