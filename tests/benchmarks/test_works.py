"""Every work still runs, at the smallest size, and finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.figures import Summary
from benchmarks.results import Case, Measured, read

FOUND = {
    "W0": {"p50_ms", "records_per_s"},
    "W1": {"steps_per_s", "processor_cpu_us_per_step", "written_bytes_per_step"},
    "W2": {"run_p50_ms", "step_p99_ms", "step_p50_over_ack_p50"},
    "W3": {"wall_ms", "steps_per_s"},
    "W4": {"starts_per_s", "submit_p99_ms"},
    "W5": {"asleep_over_idle_mb", "late_p99_ms", "restart_s"},
    "W6": {"first_moving_s", "last_moving_s", "steps_executed_twice", "completed_steps_executed_again", "runs_lost"},
    "W7": {"wall_us_per_step", "start_same_disk_s"},
    "W8": {"steps_per_s", "processor_cores"},
}


@pytest.mark.parametrize("work", FOUND)
def test_the_work_runs_and_prints_its_figures(work: str, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    code = main(["--size", "tiny", "--transport", "embedded", "--only", work, "--results", str(results)])
    measured = read(results)
    assert (code, measured.failures) == (0, [])
    figures = {name for found in measured.cases.values() for name in found}
    assert figures >= FOUND[work], figures
    if work == "W6":
        (crash,) = measured.cases.values()
        assert crash["runs_hit"].median == 10
        assert crash["completed_steps_executed_again"].most == crash["runs_lost"].most == 0
    assert "synced to the disk" in report.text(results)


def test_the_page_gets_table_and_plots_between_its_marks() -> None:
    figure = Summary(12.5, 10.0, 15.0, 5)
    cases = {
        Case("W7", "kafka", f"one run of {n} steps"): {"processor_cpu_us_per_step": figure, "foreign_cores": figure}
        for n in ("10", "1,000")
    }
    measured = Measured({"commit": "abc", "durability": {"kafka": "acks=all"}}, cases, [])
    drawn = report.plots(measured)
    assert set(drawn) == {"w7-length"}
    page = report.replaced(report.PAGE.read_text(), "measured", report.markdown(measured, sorted(drawn)))
    assert "| one run of 1,000 steps | kafka | `processor_cpu_us_per_step` | 12.5 (10 to 15) |" in page
    assert "Durability, kafka: acks=all." in page
    assert "The machine was disturbed" in page
    assert "![w7-length](performance/w7-length.svg)" in page
    assert report.replaced(page, "measured", "again").count("again\n<!-- end of measured -->") == 1


def test_a_wanted_figure_that_is_missed_is_named() -> None:
    slow = {Case("W1", "kafka", "5,000 runs of 10 steps"): {"steps_per_s": Summary(100, 90, 110, 5)}}
    assert "at least 20,000: missed" in report.markdown(Measured({}, slow, []), [])


def test_the_readme_compares_each_work_with_the_peer_side_by_side() -> None:
    cases = {
        Case("W1", f"ours{flush} beside Peer", "steps_per_s: 10 runs"): {report.RATIO: Summary(times, 1, 3, 2)}
        for flush, times in (("", 2.5), (", synced", 1.5))
    }
    cases[Case("W1", "ours", "10 runs")] = {"steps_per_s": Summary(100, 90, 110, 2)}
    page = report.replaced(report.README.read_text(), "beside", report.ratios(Measured({}, cases, [])))
    assert "| Times as good | ours beside Peer | ours, synced beside Peer |" in page
    assert "| 10 runs, `steps_per_s` | 2.5 | 1.5 |" in page
