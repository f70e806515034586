"""Which methods a path has. The route table knows what may pass below a prefix, the services' documents what is there."""

import re
from collections.abc import Mapping
from typing import Any, Final

from shared.openapi import operations

_PARAMETER: Final = re.compile(r"\\\{[^/]*?\\\}")


class Methods:
    """Finds the methods of a path in an OpenAPI document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        methods: dict[str, list[str]] = {}
        for path, method, _ in operations(document):
            methods.setdefault(path, []).append(method.upper())
        self._plain: dict[str, str] = {}
        self._templates: list[tuple[re.Pattern[str], str]] = []
        for path, names in methods.items():
            allow = ", ".join([*names[:1], *(["HEAD"] if "GET" in names else []), *names[1:], "OPTIONS"])
            if "{" in path:
                pattern = re.compile(_PARAMETER.sub("[^/]+", re.escape(path)))
                self._templates.append((pattern, allow))
            else:
                self._plain[path] = allow

    def allow(self, path: bytes) -> str | None:
        """Return the value of Allow for a canonical path, or None where no operation has it."""
        name = path.decode("ascii")
        found = self._plain.get(name)
        if found is not None:
            return found
        return next((allow for pattern, allow in self._templates if pattern.fullmatch(name)), None)
