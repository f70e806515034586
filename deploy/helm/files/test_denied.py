"""`helm test`: no pod but the gateway's reaches a service."""

import os
import socket

for other in os.environ["OTHERS"].split():
    host, _, port = other.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        continue
    raise SystemExit(
        f"{other} can be reached from here: the cluster's network does not enforce NetworkPolicies."
    )
print("denied, as it should be")
