"""Programs that the benchmark takes from the machine: which are missing, and how to get them."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that must be on the PATH."""

    program: str
    package: str
    """The Debian or Ubuntu package that has it."""

    def path(self) -> str | None:
        """Where it is. Debian keeps servers in /usr/sbin, which ordinary users may not search."""
        return shutil.which(self.program) or shutil.which(self.program, path="/usr/sbin:/usr/local/sbin")


WRK = Tool("wrk", "wrk")
NGINX = Tool("nginx", "nginx-light")
NODE = Tool("node", "nodejs")
NPM = Tool("npm", "npm")
GO = Tool("go", "golang-go")


def missing(tools: Iterable[Tool]) -> str | None:
    """One paragraph on what is missing and how to get it; None when all is there."""
    absent = sorted({tool for tool in tools if tool.path() is None}, key=lambda tool: tool.program)
    if not absent:
        return None
    names = ", ".join(tool.program for tool in absent)
    packages = " ".join(tool.package for tool in absent)
    return f"These programs are missing: {names}. On Debian and Ubuntu: apt install {packages}"
