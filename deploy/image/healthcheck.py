#!/app/bin/python -SE
"""Ask the service in this container whether it runs (`healthcheck`) or can serve (`healthcheck /health/ready`).

Exit code 0 or 1. Imports next to nothing, since what it imports may have to be compiled each time.
"""

import os
import socket
import sys

path = sys.argv[1] if len(sys.argv) > 1 else "/health"
try:
    with socket.create_connection(("127.0.0.1", int(os.environ["PORT"])), timeout=2) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
except OSError as error:
    sys.exit(f"No answer: {error.strerror or error}.")
head, _, body = answer.partition("\r\n\r\n")
if head.split()[1:2] != ["200"]:
    sys.exit(body or "No answer: the connection was closed.")
