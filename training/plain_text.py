"""Text without the markup that shops' exports carry."""

from __future__ import annotations

import html
import html.entities
import re

# Elements that stand inside a word or a phrase; around all others there is a space.
_INLINE = "b|big|em|font|i|mark|s|small|span|strike|strong|sub|sup|u"
_OTHER = (
    "a|abbr|address|article|aside|blockquote|body|br|button|caption|center|cite|code|col|colgroup"
    "|dd|del|details|dfn|div|dl|dt|embed|fieldset|figcaption|figure|footer|form|h[1-6]|head|header"
    "|hr|html|iframe|img|input|ins|kbd|label|legend|li|link|main|meta|nav|noscript|object|ol|option"
    "|p|param|picture|pre|q|section|select|source|style|script|summary|svg|table|tbody|td|template"
    "|textarea|tfoot|th|thead|title|tr|tt|ul|video|wbr"
)
_ATTRIBUTES = r"""(?:[\s/](?:"[^"]*"|'[^']*'|[^"'<>])*)?"""
_UNREAD = re.compile(
    rf"<!--.*?(?:-->|$)|<!doctype\b[^<>]*>|<!\[CDATA\[|\]\]>"
    rf"|<(script|style)\b{_ATTRIBUTES}>.*?(?:</\1\s*>|$)",
    re.IGNORECASE | re.DOTALL,
)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
_TAG = re.compile(rf"</?(?:{_OTHER}){_ATTRIBUTES}>", re.IGNORECASE)
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SPACES = re.compile(r"\s+")
_LAYERS = 3  # "&amp;lt;p&amp;gt;" was escaped twice on its way


def plain_text(text: str) -> str:
    """Takes HTML out of a text: tags, comments, scripts, styles, character references.

    Only elements that HTML has are tags, and only references that end in a semicolon are
    characters, so that "bolts <M8>", "a < b" and "AT&T" stay as they are. Markup that was escaped,
    even twice, is taken out too. Runs of white space become one space where there was markup.

    Args:
        text: with markup or without.

    Returns:
        The text; `text` itself where there was no markup.

    Example:
        >>> plain_text("<p>Marks<sup>&reg;</sup> a lot<br/>&frac12; in. &lt;b&gt;tip&lt;/b&gt;</p>")
        'Marks® a lot ½ in. tip'
    """
    if "<" not in text and "&" not in text:
        return text
    given = text
    for _ in range(_LAYERS):
        before = text
        text = _TAG.sub(" ", _INLINE_TAG.sub("", _UNREAD.sub(" ", text)))
        text = _REFERENCE.sub(_character, text)
        if text == before:
            break
    return text if text == given else _SPACES.sub(" ", text).strip()


def _character(reference: re.Match[str]) -> str:
    """What a reference stands for; itself where HTML has no such name."""
    text = reference[0]
    known = text[1] == "#" or text[1:] in html.entities.html5
    return html.unescape(text) if known else text
