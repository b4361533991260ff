"""Tables of the results, and what they are made of."""

import json
import sys
from pathlib import Path

import pytest
from peers import environments, report
from peers.__main__ import FULL, QUICK, Results, _turns
from peers.catalogue import ENVIRONMENTS, PEERS
from peers.workloads import WORKLOADS, encode, who


def speeds(p50_ms, answer=1.0):
    loop = {"p50_ms": p50_ms, "p99_ms": 2 * p50_ms, "p99.9_ms": 3 * p50_ms, "rate": 1000 / p50_ms}
    return {"at_rest": loop, "few": loop, "busy": loop, "half_load": loop, "answer": answer}


def results(**peers):
    return {"conditions": {"cores": 2}, "quick": True, "peers": peers}


def test_a_table_has_a_row_for_each_peer_and_tells_the_median_of_its_rounds(capsys):
    said = report.show(results(onecopy={"speed": {"small x 2": [speeds(1), speeds(5), speeds(2)]}}))
    row = next(line for line in said.splitlines() if "onecopy" in line)
    assert [one.strip() for one in row.split("│")[2:-1]] == ["2", "4", "6", "500", "500", "2", "4", "6"]
    assert "not to be quoted" in said
    assert capsys.readouterr().out == said


def test_what_was_not_measured_is_a_dash_and_what_failed_has_a_line():
    start = {"first_s": 1.25, "all_s": 123.4}
    said = report.show(
        results(mosec={"start": {"minilm x 8": [start]}, "failed": {"speed, small x 2": "a\nlast"}})
    )
    row = next(line for line in said.splitlines() if "mosec" in line)
    assert [one.strip() for one in row.split("│")[2:-1]] == ["1.25", "123", "-"]
    assert "mosec: speed, small x 2: last" in said


def test_peers_that_answer_something_else_are_named():
    peers = {
        name: {"speed": {"small x 2": [speeds(1, answer)]}} for name, answer in zip("abc", (1, 1, 2), strict=True)
    }
    assert report.disagreements(results(**peers)) == [
        "c: small x 2: its answer adds up to 2, that of others to 1",
    ]


def test_requests_that_were_lost_are_told():
    one = speeds(1)
    one["busy"] = one["busy"] | {"failed": 3, "unanswered": 0}
    said = report.lost(results(mosec={"speed": {"small x 2": [one]}}))
    assert said == ["mosec: small x 2: 3 failed, 0 unanswered: busy"]


def test_a_single_process_stands_in_the_table_of_those_with_workers():
    found = results(plain={"speed": {"small x 1": [speeds(1)]}}, mosec={"speed": {"small x 2": [speeds(2)]}})
    assert report.cells(found, "speed") == ["small x 2"]
    assert report.rounds_of(found, "plain", "speed", "small x 2") == [speeds(1)]
    assert report.table(found, "speed", "small x 2").row_count == 2


def test_what_is_measured_is_kept_and_a_measure_can_be_forgotten_for_some_workloads(tmp_path):
    kept = Results(tmp_path / "peers.json")
    kept.rounds("mosec", "start", "big x 8").append({"first_s": 2.0})
    kept.rounds("mosec", "start", "minilm x 8").append({"first_s": 1.0})
    kept.failed("ray")["environment"] = "no"
    kept.save()
    again = Results(tmp_path / "peers.json")
    assert again.values == json.loads((tmp_path / "peers.json").read_text())
    assert again.rounds("mosec", "start", "minilm x 8") == [{"first_s": 1.0}]
    assert again.failed("ray") == {"environment": "no"}
    again.forget("mosec", "start", ["minilm", "small"])
    assert again.rounds("mosec", "start", "minilm x 8") == []
    assert again.rounds("mosec", "start", "big x 8") == [{"first_s": 2.0}]
    again.forget("ray", "start", ["big"])


@pytest.mark.parametrize("plan", [FULL, QUICK])
def test_peers_are_measured_in_turns_and_a_single_process_once(plan):
    for measure, cells in plan.cells.items():
        turns = list(_turns(plan, measure, ["onecopy", "plain", "mosec"], WORKLOADS))
        workload, workers = cells[0]
        first = [("onecopy", workload, workers), ("plain", workload, 1), ("mosec", workload, workers)]
        assert turns[:3] == first
        plain = [turn for turn in turns if turn[0] == "plain"]
        assert len(plain) == plan.rounds[measure] * len({name for name, _ in cells})
        assert {name for _, name, _ in _turns(plan, measure, ["plain"], [workload])} == {workload}


def test_every_peer_has_an_environment_with_pinned_packages():
    assert {peer.environment for peer in PEERS.values()} == {"onecopy", *ENVIRONMENTS}
    assert all("==" in package for packages in ENVIRONMENTS.values() for package in packages)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_payload_survives_its_way_as_bytes(name):
    workload = WORKLOADS[name]
    payload = workload.payload()
    body = encode(payload)
    assert len(body) == workload.size_bytes
    found = workload.decode(body)
    assert found == payload if isinstance(payload, str) else (found == payload).all()


def test_an_answer_tells_who_gave_it():
    assert who([[0.5, 4194303.0]]) == 4194303


def test_a_reason_names_no_folder_of_this_machine():
    said = environments.without_paths(f"{environments.ROOT}/a.py, {sys.base_prefix}/lib, {Path.home()}/b")
    assert said == "./a.py, python/lib, ~/b"


def test_rounds_of_another_form_of_the_package_are_dropped_and_those_of_peers_stay(tmp_path):
    results = Results(tmp_path / "peers.json")
    for peer in ("onecopy", "mosec"):
        results.rounds(peer, "speed", "small x 2").append({})
    results.begin({"compiled": True}, is_quick=False)
    assert list(results.values["peers"]) == ["mosec"]
    results.rounds("onecopy", "speed", "small x 2").append({})
    results.begin({"compiled": True}, is_quick=False)
    assert list(results.values["peers"]) == ["mosec", "onecopy"]
