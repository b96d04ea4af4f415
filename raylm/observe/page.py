"""Pages: one HTML text with its style in it, that loads nothing and is read on light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources


def render(package: str, template: str, values: Mapping[str, object]) -> str:
    """A page from a package's template, which gets the style of all pages as `style`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = (resources.files("raylm.observe") / "page.css").read_text(encoding="utf-8")
    text = (resources.files(package) / template).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = number
    return environment.from_string(text).render(**values, style=Markup(style))


def number(value: object) -> str:
    """A figure for people: four significant digits, thousands apart."""
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
