"""Every benchmark there is. To add one, write it in a module beside this and name it here."""

from bench.model import Benchmark
from bench.rows import bodies, commits, fanout, hello, items, latency, process, proxying, tunnel

BENCHMARKS: tuple[Benchmark, ...] = (
    *proxying.BENCHMARKS,
    *bodies.BENCHMARKS,
    *items.BENCHMARKS,
    *latency.BENCHMARKS,
    *tunnel.BENCHMARKS,
    *process.BENCHMARKS,
    *fanout.BENCHMARKS,
    *commits.BENCHMARKS,
    *hello.BENCHMARKS,
)
