"""The chart, rendered by the real engine of Helm, and what its tests ask of the result."""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

CHART = Path(__file__).parents[1]
EXAMPLES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((CHART / "examples").glob("*.yaml"))
}
VALUES: dict[str, dict[str, Any]] = {"default": {}, **EXAMPLES}
KUBERNETES = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
OPERATORS = {
    "gateway.networking.k8s.io/v1": "gateway-api",
    "keda.sh/v1alpha1": "keda",
    "monitoring.coreos.com/v1": "prometheus-operator",
    "postgresql.cnpg.io/v1": "cloudnative-pg",
}
"""APIs whose schemas do not come with Kubernetes, and the package of each one's types: `make check-chart` holds to them."""

Manifest = dict[str, Any]


@cache
def chart() -> Chart:
    """The chart of this clone."""
    return Chart.load(CHART)


def render(values: dict[str, Any], *, upgrade: bool = False, of: Chart | None = None) -> list[Manifest]:
    """Every manifest for a release `shop` in the namespace `apps`."""
    rendered = (of or chart()).render(
        values, name="shop", namespace="apps", is_install=not upgrade, is_upgrade=upgrade
    )
    texts = (text for path, text in sorted(rendered.items()) if not path.endswith("NOTES.txt"))
    return [
        manifest for text in texts for manifest in yaml.load_all(text, Loader=_Strict) if manifest
    ]  # a safe loader


def renderings() -> Iterator[tuple[str, list[Manifest]]]:
    """What the default and every example render for an installation and for an upgrade, with a name for each."""
    for name, values in VALUES.items():
        yield f"{name}-install", render(values)
        yield f"{name}-upgrade", render(values, upgrade=True)


class _Strict(yaml.SafeLoader):
    """A safe loader that takes no key twice: Kubernetes would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # the library's signature
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(map(str, keys))), f"a key stands twice in {keys}"
        return dict(super().construct_mapping(node, deep=deep))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """The manifests of some kinds."""
    return [one for one in manifests if one["kind"] in kinds]


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Every pod there will be: a name for messages, its metadata and its spec."""
    for one in manifests:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield name, one["metadata"], one["spec"]
        elif "template" in one.get("spec", {}):
            template = one["spec"]["template"]
            yield name, template["metadata"], template["spec"]


def containers(spec: Manifest) -> list[Manifest]:
    """Containers and init containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def selects(selector: Manifest, labels: Manifest) -> bool:
    """Whether a label selector fits."""
    return bool((selector.get("matchLabels") or {}).items() <= labels.items())


def problems(manifest: Manifest, version: str) -> list[str]:
    """What Kubernetes' own schema of that version, strictly read, has against a manifest."""
    if manifest["apiVersion"] in OPERATORS:
        return []
    validator = _validator(version, manifest["kind"], manifest["apiVersion"])
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [f"{name} {error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def _validator(version: str, kind: str, api: str) -> Draft202012Validator:
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    document = json.loads((_schemas(version) / f"{kind.lower()}-{short}.json").read_text())
    return Draft202012Validator(document, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    definitions = Resource.from_contents(json.loads((_schemas(version) / "_definitions.json").read_text()))
    return (definitions @ Registry()).crawl()


def _schemas(version: str) -> Path:
    return Path(str(files("kubernetes_validate"))) / f"kubernetes-json-schema/v{version}.0-local-strict"
