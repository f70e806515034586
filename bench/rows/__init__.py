"""Every benchmark there is. To add one, write it in a module beside this and name it here."""

from bench.model import Benchmark
from bench.rows import proxying

BENCHMARKS: tuple[Benchmark, ...] = (*proxying.BENCHMARKS,)
