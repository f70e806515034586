"""`helm test`: the gateway serves, sees every service, and publishes the keys of its issuer."""

import json
import os
from typing import Any
from urllib.request import urlopen


def get(path: str) -> Any:
    with urlopen(os.environ["GATEWAY"] + path, timeout=10) as answer:
        return json.load(answer)


health = get("/health/ready")
assert health["status"] == "ready", health
assert get("/.well-known/jwks.json")["keys"]
document = get("/openapi.json")
assert document["paths"], document
print(f"ready: {', '.join(health['upstreams'])}; {len(document['paths'])} paths")
