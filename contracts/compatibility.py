"""Says what a change of a published schema breaks for those who read by the old one.

Producers may add fields, make optional ones certain and narrow what a field can be. Whoever removes, renames, retypes
or widens a field breaks a reader: such a change is a new type, `.v2`, beside the old one.
"""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def broken_events(old: Schema, new: Schema) -> list[str]:
    """Compare two AsyncAPI documents; return a sentence for each event or server frame that readers could not read."""
    sentences = []
    for name, message in old["components"]["messages"].items():
        if name not in new["components"]["messages"]:
            sentences.append(f"{name} is published no more")
            continue
        sentences += [
            f"{name}: {sentence}"
            for sentence in breaks(
                _payload(message, old),
                _payload(new["components"]["messages"][name], new),
                old["components"]["schemas"],
                new["components"]["schemas"],
            )
        ]
    return sentences


def _payload(message: Schema, document: Schema) -> Schema:
    payload = message["payload"]
    if "allOf" in payload:  # an event: what its type says about `data`
        payload = payload["allOf"][-1]["properties"]["data"]
    return _resolved(payload, document["components"]["schemas"])


def _resolved(schema: Schema, schemas: Schema) -> Schema:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def breaks(old: Schema, new: Schema, old_schemas: Schema, new_schemas: Schema, at: str = "data") -> list[str]:
    """Say what a reader of `old` would not find, or not understand, in `new`."""
    old, new = _resolved(old, old_schemas), _resolved(new, new_schemas)
    sentences = []
    if unexpected := _types(new, new_schemas) - _types(old, old_schemas):
        sentences.append(f"{at} may now be {', '.join(sorted(unexpected))}")
    for name, schema in old.get("properties", {}).items():
        place = f"{at}.{name}"
        if name not in new.get("properties", {}):
            sentences.append(f"{place} is gone")
            continue
        if name in old.get("required", ()) and name not in new.get("required", ()):
            sentences.append(f"{place} may now be absent")
        sentences += breaks(schema, new["properties"][name], old_schemas, new_schemas, place)
    if "items" in old and "items" in new:
        sentences += breaks(old["items"], new["items"], old_schemas, new_schemas, f"{at}[]")
    return sentences


def _types(schema: Schema, schemas: Schema) -> set[str]:
    """Return what a value can be, its format and its fixed values included."""
    schema = _resolved(schema, schemas)
    if "anyOf" in schema:
        return set().union(*(_types(one, schemas) for one in schema["anyOf"]))
    if "enum" in schema:
        return {f"the value {value!r}" for value in schema["enum"]}
    if "const" in schema:
        return {f"the value {schema['const']!r}"}
    if "type" not in schema:
        return {"anything"}
    return {f"{schema['type']} ({schema['format']})" if "format" in schema else str(schema["type"])}
