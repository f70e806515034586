"""JSON from a bare Flask view."""

from flask import Flask


def hello() -> dict[str, str]:
    """Greet."""
    return {"message": "hello, world"}


app = Flask(__name__)
app.add_url_rule("/hello", view_func=hello)
