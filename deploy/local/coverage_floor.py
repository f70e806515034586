# noqa: INP001
"""Fail unless each package named in the arguments has its share of lines covered by the combined run."""

import sys
from pathlib import Path

from coverage import Coverage

FLOOR = 90.0
"""Per cent of the lines of each package."""


def main(packages: list[str]) -> int:
    """Print a line per package; returns 1 if one is under the floor, 0 otherwise."""
    coverage = Coverage()
    coverage.load()
    short = []
    for package in packages:
        statements = missing = 0
        # From the folder, not from the data: a file that nothing imported counts, too.
        for path in (
            *Path.cwd().glob(f"*/src/{package}/**/*.py"),
            *Path.cwd().glob(f"*/*/src/{package}/**/*.py"),
        ):
            _, lines, _, missed, _ = coverage.analysis2(str(path))
            statements += len(lines)
            missing += len(missed)
        covered = 100.0 * (statements - missing) / statements if statements else 0.0
        sys.stdout.write(f"  {package:<14} {covered:5.1f} % of {statements} lines\n")
        if covered < FLOOR:
            short.append(package)
    if short:
        sys.stderr.write(
            f"Less than {FLOOR:.0f} % of the lines are covered in: {', '.join(short)} "
            "(.venv/bin/coverage report lists them).\n"
        )
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
