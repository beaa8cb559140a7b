"""Markup that shops' exports carry is taken out of texts; what only looks like it stays."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.catalog import Catalog
from training.plain_text import plain_text


class _Reference(HTMLParser):
    """The text of well-formed HTML, by the standard library's parser; a space for each tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self.text += " "


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<p>Marks<sup>&reg;</sup> a lot<br/>tip</p>", "Marks® a lot tip"),
        ("<ul><li>Oak</li><li>Steel, H<sub>2</sub>O-proof</li></ul>", "Oak Steel, H2O-proof"),
        ('<a href="x?a=1>2" title=\'"\'>Manual</a>', "Manual"),
        ("<IMG SRC=a.png>Lamp<BR CLEAR=all>40 W", "Lamp 40 W"),
        ("Ink <!-- .APlus {font-size:15px} --> 74", "Ink 74"),
        ("Ink <!-- cut off by the export", "Ink"),
        ("<style>li {margin: .6em}</style>Pen<script>if (a < b) x()</script> blue", "Pen blue"),
        ("<!DOCTYPE html><html><body>Cup</body></html>", "Cup"),
        ("&lt;ul&gt;&lt;li&gt;Escaped once&lt;/li&gt;&lt;/ul&gt;", "Escaped once"),
        ("&amp;lt;p&amp;gt;Escaped twice&amp;lt;/p&amp;gt;", "Escaped twice"),
        ("5&#34; x 3&#x22; &amp; 1&frac12; in.", '5" x 3" & 1½ in.'),
        ("<p> </p>", ""),
    ],
)
def test_markup_is_taken_out(given: str, expected: str) -> None:
    assert plain_text(given) == expected


@pytest.mark.parametrize(
    "text",
    [
        "bolts <M8> and <M10>",
        "length < 3 m, weight > 2 kg",
        "AT&T B&Q R & D",
        "black&notes; &nosuchthing; 3 <3 <- ->",
        "a <br",
        "<branch> <pp> <bx>",
        "no  markup\tat all",
    ],
)
def test_what_only_looks_like_markup_stays(text: str) -> None:
    assert plain_text(text) == text


_WORDS = st.text(st.characters(whitelist_categories=("L", "N")), min_size=1, max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["p", "li", "div", "td", "h2", "a"]), _WORDS)))
def test_well_formed_html_reads_as_by_the_standard_library(parts: list[tuple[str, str]]) -> None:
    document = "".join(f"<{tag}>{html.escape(word)}</{tag}>" for tag, word in parts)
    reference = _Reference()
    reference.feed(document)
    reference.close()
    assert plain_text(document) == " ".join(reference.text.split())


@given(st.text(st.sampled_from("<>/!-&;#\"' abpli3"), max_size=60))
def test_any_text_is_read(text: str) -> None:
    plain = plain_text(text)
    assert len(plain) <= len(text)
    if "<" not in text and "&" not in text:
        assert plain == text


def test_a_catalogue_and_its_lists_are_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"item_id": "<b>1</b>", "title": "Tea &amp; more", "description": ["<p>Oak</p>", "4 W"]}\n'
        '{"item_id": "2", "title": "Tea & more", "description": "<br>", "sizes": [1, 2.5, null]}\n'
        '{"item_id": "3", "title": "Mug", "description": NaN, "sizes": [["a"], ["b", "c"]]}\n'
    )
    catalog = Catalog.read(path)
    assert catalog.item_ids.tolist() == ["<b>1</b>", "2", "3"]  # an id is never changed
    assert catalog.column("title") == ["Tea & more", "Tea & more", "Mug"]
    assert catalog.column("description") == ["Oak , 4 W", None, None]
    assert catalog.column("sizes") == [None, "1, 2.5", "a, b, c"]
