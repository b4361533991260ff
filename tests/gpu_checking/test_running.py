"""Facts in processes of their own: whatever becomes of one, its result is kept and nothing else is harmed."""

import json

import psutil
import pytest
from gpu_checking import __main__ as main
from gpu_checking.results import Report, Verdict
from leftovers import wait_until

HOLDS, DIFFERS, UNTRIED = Verdict


@pytest.fixture
def tried(command, tmp_path):
    """Try facts and return their results, with what the screen shows and the exit code."""
    path = tmp_path / "results" / "report.json"

    def run(*names, seconds=60):
        done = command("-m", "own_facts", str(path), str(seconds), *names)
        assert done.returncode in (0, 1), done.stderr
        return Report.read(path).results, done.stdout, done.returncode

    run.path = path
    return run


def test_a_fact_that_holds_has_claims_and_figures(tried):
    results, shown, code = tried("A1")
    found = results["A1"]
    assert (found.verdict, found.broken, code) == (HOLDS, "", 0)
    assert [(one.text, one.verdict, one.seen) for one in found.claims] == [("it is wet", HOLDS, "42 drops")]
    assert found.figures == {"drops": 42, "depth, m": 1.2346}
    assert found.seconds > 0
    assert shown.startswith("A1  holds")
    assert "Water is wet." in shown


def test_a_fact_that_differs_says_what_was_seen_and_names_no_folder(tried):
    results, shown, code = tried("A2")
    assert (results["A2"].verdict, code) == (DIFFERS, 1)
    assert results["A2"].notes == ["differs: it is warm (-3 degrees | by thermometer.txt)"]
    assert "it is warm" in shown


@pytest.mark.parametrize(
    ("name", "reason", "kept"),
    [
        ("A3", r"RuntimeError: blinded (own_facts.py:", ["it rises"]),
        ("A4", 'its process ended with SIGSEGV: File "own_facts.py", line', ["bends by, mm"]),
        ("A6", "there is no door", []),
    ],
)
def test_an_experiment_that_ends_early_was_not_tried_and_keeps_what_it_said(tried, name, reason, kept):
    results, _, code = tried(name)
    found = results[name]
    assert (found.verdict, code) == (UNTRIED, 0)
    assert found.broken.startswith(reason)
    assert [one.text for one in found.claims] + list(found.figures) == kept


def test_an_experiment_that_hangs_is_stopped_with_all_that_it_started(tried):
    results, _, _ = tried("A5", "A1")
    assert results["A5"].broken == "stopped at its limit of 1 s"
    assert [one.text for one in results["A5"].claims] == ["so far"]
    assert results["A1"].verdict == HOLDS  # the next goes on

    def left():
        commands = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"])]
        return [one for one in commands if one in (["sleep", "1000"], ["sleep", "1001"])]

    assert wait_until(lambda: not left(), 5)


def test_parts_go_on_after_each_other_and_children_are_believed(tried):
    results, _, _ = tried("A7", "A8")
    assert [one.verdict for one in results["A7"].claims] == [DIFFERS, UNTRIED, HOLDS, DIFFERS]
    assert [one.verdict for one in results["A8"].claims] == [HOLDS, UNTRIED, DIFFERS]
    assert results["A8"].figures == {"words": 1}
    assert results["A8"].claims[2].seen == "speaks: ConnectionError: hung up"


def test_what_is_known_is_not_tried_again_and_what_was_not_tried_is(tried):
    tried("A1", "A3")
    values = json.loads(tried.path.read_text())
    values["facts"]["A1"]["seconds"] = 777.0
    values["facts"]["A3"]["seconds"] = 777.0
    tried.path.write_text(json.dumps(values))
    results, shown, _ = tried("A1", "A2", "A3")
    assert "A1  holds, known from an earlier run" in shown
    assert results["A1"].seconds == 777.0
    assert results["A3"].seconds != 777.0
    assert results["A2"].verdict == DIFFERS


def test_what_finds_no_time_left_says_so(tried):
    results, _, _ = tried("A1", seconds=0)
    assert results["A1"].broken == "no time was left for it"


def test_the_table_has_a_row_and_a_part_for_each_fact_and_breaks_at_no_bar(tried):
    tried("A3", "A2", "A1")
    table = tried.path.with_suffix(".md").read_text()
    assert "3 facts: 1 holds, 1 differs, 1 could not be tried." in table
    assert "| machine | this one |" in table
    rows = [line for line in table.splitlines() if line.startswith("| A")]
    assert [row.split(" | ")[0] for row in rows] == ["| A1", "| A2", "| A3"]
    assert "(-3 degrees \\| by thermometer.txt)" in rows[1]
    assert "## A1: Water is wet." in table
    assert "| depth, m | 1.235 |" in table
    assert not tried.path.with_suffix(".part").exists()


def test_a_report_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"facts": 7}')
    with pytest.raises(ValueError, match=r"broken\.json is no report of scripts/gpu-check"):
        Report.read(path)


def test_lists_of_facts_are_read_and_unknown_ones_refused(capsys):
    options = main.parse(["--only", "t3, F1", "--skip", "T15", "--out", "there"])
    assert (options.only, options.skip, options.resume, options.out) == (("T3", "F1"), ("T15",), None, "there")
    assert main.parse(["--resume"]).resume == ""
    with pytest.raises(SystemExit) as ended:
        main.parse(["--only", "T99"])
    assert ended.value.code == 2
    assert "there are no facts T99; there are T1, " in capsys.readouterr().err


def test_the_report_goes_to_out_if_that_is_set(monkeypatch):
    monkeypatch.setenv("OUT", "/somewhere")
    assert main.parse([]).out == "/somewhere"
    monkeypatch.delenv("OUT")
    assert main.parse([]).out == main.DEFAULT_FOLDER
