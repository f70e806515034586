"""`python -m deploy.helm.tests.operators`: write what the chart renders for operators as manifests.ts, for their types to judge.

A manifest becomes a literal of its kind's type, in which the compiler refuses an unknown field, and a call of the schema's
own validator, which refuses a bad value. The packages are generated from the CustomResourceDefinitions.
"""

import json
from pathlib import Path

from deploy.helm.tests.rendering import OPERATORS, renderings


def source() -> str:
    """Return the program: it fails to compile, or to run, when a manifest is wrong."""
    manifests = [
        (name, manifest)
        for name, rendered in renderings()
        for manifest in rendered
        if manifest["apiVersion"] in OPERATORS
    ]
    kinds = {(manifest["apiVersion"], manifest["kind"]) for _, manifest in manifests}
    missing = OPERATORS.keys() - {api for api, _ in kinds}
    assert not missing, f"no example renders a resource of {', '.join(missing)}"
    lines = [
        f'import {{ {kind}, type I{kind} }} from "@kubernetes-models/{OPERATORS[api]}/{api}/{kind}";'
        for api, kind in sorted(kinds)
    ]
    for number, (name, manifest) in enumerate(manifests):
        kind = manifest["kind"]
        lines += [
            f"// {name}: {kind}/{manifest['metadata']['name']}",
            f"const manifest{number}: I{kind} = {json.dumps(manifest, indent=2)};",
            f"new {kind}(manifest{number}).validate();",
        ]
    return "\n".join([*lines, f'console.log("{len(manifests)} resources of operators fit their types");', ""])


if __name__ == "__main__":
    Path(__file__).with_name("manifests.ts").write_text(source())
