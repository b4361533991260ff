"""The examples of weights from files, of plans, and of a pool that nobody owns do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"
MB = 1e6


def run(name):
    """Run an example; return its rows of memory and its facts."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110, check=True)
    measured = json.loads(done.stdout)
    return measured["rows"], measured["facts"]


def test_a_file_is_loaded_once_prepared_once_and_in_no_worker_twice():
    rows, facts = run("weights_from_files")
    weights = {name: row["weights_bytes"] for name, row in rows.items()}
    file_bytes = facts["file_bytes"]
    assert weights["'loaded' used"] < 1.01 * file_bytes
    assert weights["'exported' used"] - weights["'loaded' used"] < MB
    assert weights["'mapped' used"] - weights["'exported' used"] < MB
    assert weights["'folded' used"] - weights["'mapped' used"] < 1.01 * file_bytes
    assert weights["'eight_bits' used"] - weights["'folded' used"] < 0.27 * file_bytes
    assert facts["times_folded"] == 1
    assert facts["workers_grew_by_at_most_bytes"] < file_bytes
    assert facts["loaded_is_off_by"] == facts["exported_is_off_by"] == facts["mapped_is_off_by"] == 0
    assert facts["fallbacks"] == []
    assert facts["folded_is_off_by"] < 1e-5
    assert 0 < facts["eight_bits_is_off_by"] < 0.1


def test_an_app_a_job_and_a_client_with_keys_use_one_pool():
    _, facts = run("served_alone")
    assert facts["all_get_the_same"]
    assert 0 < facts["lines_before_the_kill"] < facts["lines"]
    assert facts["each_line_once_and_in_order"]
    assert "it may ask for keys" in facts["without_keys"]
    assert "its server key is not" in facts["with_keys_of_another_server"]
    assert "it lets in no client with the public key" in facts["with_keys_that_were_revoked"]


def test_what_was_planned_comes_true_and_shares_are_kept():
    rows, facts = run("planned")
    (row,) = rows.values()
    assert facts["fits"]
    assert row["weights_bytes"] == facts["planned_weights_bytes"]
    assert facts["compute_bound"] == ["computes", "computes_too"]
    assert facts["place"] == facts["planned_place"]
    assert facts["place"]["computes"] != facts["place"]["computes_too"]
    assert facts["pairs_that_compute_on_one_device"] == 0
    assert sorted(facts["order"]) == sorted(facts["place"])
    assert facts["peak_bytes"] <= facts["peak_as_given_bytes"]
    assert facts["reserves_bytes"] == 200 * MB
    assert facts["least_free_bytes"] > 0
    assert (facts["loads_known_before"], facts["loads_known_after"]) == (0, 4)
    assert 2 < facts["favoured_had_times_the_others_time"] < 4.5


def test_a_model_that_is_larger_than_any_device_is_divided():
    rows, facts = run("divided")
    assert facts["equal_to_plain"]
    assert sorted(facts["parts_bytes"]) == ["cpu:0", "cpu:1"]
    assert facts["weights_bytes"] <= sum(facts["parts_bytes"].values())
    assert facts["weights_bytes"] > max(facts["parts_bytes"].values())
    more_bytes = rows["the deep one beside it"]["weights_bytes"] - rows["the small one"]["weights_bytes"]
    assert more_bytes < 1.01 * facts["weights_bytes"]
    assert all(facts["used_bytes"][name] <= limit for name, limit in facts["limits_bytes"].items())
    assert "bytes" in facts["undivided"]
