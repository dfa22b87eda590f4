"""HTML from values. Whatever is not `Html` is escaped: names of files and annotations come from strangers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = ("br", "img", "input", "meta")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def join(*children: object) -> Html:
    """Children one after the other, escaped where they are no `Html`."""
    return Html("".join(c if isinstance(c, Html) else escape(str(c)) for c in children))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. In attributes a final underscore is dropped (`class_`), others become hyphens; None leaves it out."""
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    words = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    start = f"<{name}{words}>"
    return Html(start if name in _VOID else f"{start}{join(*children)}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls sideways where it is wider than the page; the first cell of a row names it."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = (tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows)
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values; pairs without a value are left out."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs if value not in ("", None)))


def swatch(css_class: str) -> Html:
    return tag("span", class_=f"swatch {css_class}", aria_hidden="true")


def document(title: str, css: str, *body: object) -> Html:
    """A whole page. It runs no script and fetches nothing, whatever a file of the data set is called."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(css)),
    )
    return Html(f"<!DOCTYPE html>\n{tag('html', head, tag('body', *body), lang='en')}\n")
