"""Print the names of the services, one a line: for scripts that do something for each."""

from stack.services import TOLLHOUSE

if __name__ == "__main__":
    for spec in TOLLHOUSE.services:
        print(spec.name)
