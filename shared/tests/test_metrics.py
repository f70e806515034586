"""Counting in several processes, one page for all of them."""

import subprocess
import sys
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from shared import metrics
from shared.metrics import CONTENT_TYPE, LATENCY_BOUNDS, Collector, Metrics, exporting, exposition
from shared.testing import free_port

WORKER = """
import sys
from pathlib import Path
from shared.metrics import Metrics
metrics = Metrics(Path(sys.argv[1]))
metrics.cells[metrics.counter("served_total", "Served.")] += 3
metrics.cells[metrics.gauge("open", "Open.")] = 5
print("counted", flush=True)
sys.stdin.read()
"""


def page(directory: Path) -> list[str]:
    return exposition(Collector(directory).collect()).decode().splitlines()


def test_processes_are_added_up_and_a_killed_one_keeps_what_it_counted(tmp_path: Path) -> None:
    collector = Collector(tmp_path)

    def numbers() -> dict[str, float]:
        return {cell.family: number for cell, number in collector.collect().items()}

    workers = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", WORKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            assert worker.stdout
            assert worker.stdout.readline() == b"counted\n"
        assert numbers() == {"served_total": 6, "open": 10}
        workers[0].kill()
        workers[0].wait()
        for _ in range(2):
            assert numbers() == {"served_total": 6, "open": 5}
        assert len(list(tmp_path.iterdir())) == 2  # the dead one's files are gone
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert numbers() == {"served_total": 6}


def test_histogram_is_cumulative(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as mine:
        first, total = mine.histogram("seconds", "Time.", route="/a")
        for value in (0.001, 0.003, 99.0):
            mine.cells[first + bisect_left(LATENCY_BOUNDS, value)] += 1
            mine.cells[total] += value
        lines = page(tmp_path)
    assert lines[:2] == ["# HELP seconds Time.", "# TYPE seconds histogram"]
    assert 'seconds_bucket{route="/a",le="0.001"} 1' in lines
    assert 'seconds_bucket{route="/a",le="0.0025"} 1' in lines
    assert 'seconds_bucket{route="/a",le="30"} 2' in lines
    assert 'seconds_bucket{route="/a",le="+Inf"} 3' in lines
    assert 'seconds_count{route="/a"} 3' in lines
    assert any(line.startswith('seconds_sum{route="/a"} 99.00') for line in lines)


def test_label_values_are_escaped_and_labels_part_series(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as mine:
        mine.count("things_total", "Things.", name='a"\\\n')
        mine.count("things_total", "Things.", name="b")
        mine.count("things_total", "Things.", name="b")
        lines = page(tmp_path)
    assert lines[2:] == ['things_total{name="a\\"\\\\\\n"} 1', 'things_total{name="b"} 2']


def test_observed_numbers_are_asked_for(tmp_path: Path) -> None:
    waiting = [1, 2]
    with closing(Metrics(tmp_path)) as mine:
        mine.observe(mine.gauge("waiting", "Waiting."), lambda: len(waiting))
        assert "waiting 2" in page(tmp_path)
        waiting.clear()
        mine.refresh()
        assert "waiting 0" in page(tmp_path)


def test_numbers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_CELLS", 4)
    with closing(Metrics(tmp_path)) as mine:
        for number in range(10):
            mine.count("things_total", "Things.", name=str(number))
        with pytest.raises(RuntimeError):
            mine.histogram("seconds", "Time.")
        assert len(page(tmp_path)) == 2 + 3


def test_without_a_directory_counting_costs_the_same_and_shows_nothing() -> None:
    with closing(Metrics()) as mine:
        mine.count("things_total", "Things.")
    mine.count("things_total", "Things.")  # what ends late may still count


def test_page_is_served_on_a_port_of_its_own_and_nothing_is_left_behind() -> None:
    port = free_port()
    with exporting("127.0.0.1", port) as directory, closing(Metrics(directory)) as mine:
        mine.count("things_total", "Things.")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["content-type"] == CONTENT_TYPE
            assert b"things_total 1\n" in answer.read()
        with pytest.raises(HTTPError) as missing:
            urlopen(f"http://127.0.0.1:{port}/", timeout=10)
        missing.value.close()
        assert missing.value.code == 404
        with pytest.raises(OSError, match="in use"), exporting("127.0.0.1", port):
            pass
    assert not directory.exists()


def test_level_is_measured_alike_by_all_and_the_highest_is_shown(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as first, closing(Metrics(tmp_path)) as second:
        for one, seen in ((first, 7.0), (second, 5.0)):
            one.cells[one.level("backlog", "Waiting.")] = seen

        assert page(tmp_path) == ["# HELP backlog Waiting.", "# TYPE backlog gauge", "backlog 7"]
