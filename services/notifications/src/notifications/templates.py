"""Mails that other services ask for, as text and as HTML."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

Template = Literal["change_email", "reset_password", "verify_email"]

SUBJECTS: Mapping[Template, str] = {
    "change_email": "Confirm your new address",
    "reset_password": "Set a new password",
    "verify_email": "Verify your address",
}

_environment = Environment(
    loader=PackageLoader("notifications"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


class Rendered(NamedTuple):
    """A mail ready to be stored."""

    subject: str
    text: str
    html: str


def render(template: Template, values: Mapping[str, str | int]) -> Rendered:
    """Fill a template in.

    Raises:
        jinja2.UndefinedError: a value is missing.
    """
    text, html = (_environment.get_template(f"{template}.{kind}").render(values) for kind in ("txt", "html"))
    return Rendered(SUBJECTS[template], text, html)
