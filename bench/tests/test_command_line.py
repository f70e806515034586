"""What a person sees who types `make bench`."""

from pathlib import Path

import pytest
from bench.__main__ import main
from bench.rows import BENCHMARKS


def test_without_its_programs_it_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["proxied_get_jwt"]) == 2
    said = capsys.readouterr().err
    assert "wrk" in said
    assert "apt install" in said


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-figure"]) == 2
    assert "no-such-figure" in capsys.readouterr().err


def test_list_names_every_benchmark_and_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for benchmark in BENCHMARKS:
        assert benchmark.name in said
        assert all(figure.name in said for figure in benchmark.figures)
