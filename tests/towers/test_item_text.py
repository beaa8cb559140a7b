from __future__ import annotations

import pytest

from towers.errors import InputError
from towers.item_text import ItemTemplate


def render(pattern: str, **values: object) -> str:
    return ItemTemplate(pattern).render({name: [value] for name, value in values.items()})[0]


def test_columns_are_filled_in() -> None:
    template = ItemTemplate("{title} by {brand}: {title}")
    assert template.columns == ("title", "brand")
    columns = {"title": ["Kettle", "Mug"], "brand": ["Harrow", "Purr"], "price": [1, 2]}
    assert template.render(columns) == ["Kettle by Harrow: Kettle", "Mug by Purr: Mug"]


@pytest.mark.parametrize("empty", [None, "", "  \t", float("nan")])
def test_a_section_with_an_empty_column_is_left_out(empty: object) -> None:
    pattern = "{title}[ by {brand}][, {colour} {size}]."
    assert render(pattern, title="Mug", brand="Purr", colour="red", size="L") == (
        "Mug by Purr, red L."
    )
    assert render(pattern, title="Mug", brand=empty, colour="red", size="L") == "Mug, red L."
    assert render(pattern, title="Mug", brand="Purr", colour="red", size=empty) == "Mug by Purr."
    assert render(pattern, title=empty, brand=empty, colour=empty, size=empty) == "."


def test_white_space_is_one_space() -> None:
    assert render(" {title}\n{brand}  ", title=" Red \t mug\u00a0", brand="") == "Red mug"


def test_values_that_are_no_strings() -> None:
    assert render("{title} {price}", title=7, price=12.5) == "7 12.5"
    assert render("{title}[ {stock}]", title="Mug", stock=0) == "Mug 0"


def test_values_are_text_not_templates() -> None:
    title = "{brand} [x] {{y}} %s"
    assert render("{title}[ {brand}]", title=title, brand="[b]") == f"{title} [b]"


def test_doubled_braces_are_braces() -> None:
    assert render("{{{title}}} [{{{brand}}}]", title="Mug", brand="Purr") == "{Mug} {Purr}"


@pytest.mark.parametrize("name", ["product name", "size.eu", "größe", "0", "a-b"])
def test_any_column_name(name: str) -> None:
    assert ItemTemplate(f"{{{name}}}").columns == (name,)
    assert render(f"-{{{name}}}-", **{name: "x"}) == "-x-"


def test_no_rows() -> None:
    assert ItemTemplate("{title}").render({"title": []}) == []


@pytest.mark.parametrize(
    ("columns", "pattern"),
    [
        (["item_id", "title"], "{title}"),
        (["title", "description", "price"], "{title}[ {description}]"),
        (["description", "brand", "title"], "{title}[ {brand}][ {description}]"),
        (
            ["item_id", "title", "colour", "description", "category", "brand"],
            "{title}[ {brand}][ {category}][ {description}]",
        ),
    ],
)
def test_the_usual_template(columns: list[str], pattern: str) -> None:
    assert ItemTemplate.for_columns(columns).pattern == pattern


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "names no column"),
        ("title", "names no column"),
        ("{{title}}", "names no column"),
        ("{title} {}", "empty {}"),
        ("{title", "expected '}'"),
        ("title}", "Single '}'"),
        ("{title}[ by {brand}", "unbalanced or nested brackets"),
        ("{title} by {brand}]", "unbalanced or nested brackets"),
        ("{title}[ by [{brand}]]", "unbalanced or nested brackets"),
        ("{title}[ by {bra]nd}", "expected '}'"),
        ("{price:.2f}", "formats 'price'"),
        ("{title!r}", "formats 'title'"),
    ],
)
def test_bad_patterns(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match="item text template") as error:
        ItemTemplate(pattern)
    assert message in str(error.value)
    assert repr(pattern) in str(error.value)


def test_missing_column_is_named_beside_those_there() -> None:
    with pytest.raises(InputError, match=r"column\(s\) brand, size; the catalogue has title, id"):
        ItemTemplate("{title} {brand} {size}").render({"title": ["a"], "id": ["1"]})
