"""The benchmark: this system beside its peers, alternating in one run. `python -m bench --help`; README.md says how to add a row."""
