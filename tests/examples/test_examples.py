"""The examples do what they say: each is run as a user would run it, and what it measured is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cuda_driver
import pytest

EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples"
MB = 1e6


def run(name, *options):
    """Run an example; return its rows of memory and its facts."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110, check=True)
    measured = json.loads(done.stdout)
    return measured["rows"], measured["facts"]


def test_equal_weights_are_in_memory_once_and_go_with_their_last_user():
    rows, facts = run("shared_weights")
    weights = {name: row["weights_bytes"] for name, row in rows.items()}
    one = weights["'first' used"]
    head = weights["'other' used"] - one
    assert weights["declared, none used"] == 0
    assert one > 37 * MB  # a backbone of 34 MB and a head of 4
    assert weights["'again' used"] == one
    assert 4 * MB < head < 5 * MB
    assert weights["'own' used"] == 2 * one + head
    assert weights["all four used, none sharing"] == 4 * one
    total = {name: row["total_bytes"] for name, row in rows.items()}
    assert total["'own' used"] < total["all four used, none sharing"] - one
    assert weights["workers killed, all unloaded"] == one  # of which a process attached to it is a user
    assert weights["the attached process killed"] == 0
    assert facts["other_shares_with"] == ["again", "first"]
    assert facts["own_shares_with"] == []
    assert facts["equal_to_plain"]
    assert facts["answered_during_the_load"] > 5


def test_five_instances_use_no_more_and_no_less_than_a_band_says():
    rows, facts = run("model_group")
    assert facts["band_from_bytes"] <= facts["five_use_at_least_bytes"]
    assert facts["five_use_at_most_bytes"] <= facts["band_to_bytes"]
    # The band is narrow enough to tell: one more copy does not lie in it, and one worker alone is below it.
    weights_bytes = rows["1 worker"]["weights_bytes"]
    assert facts["band_to_bytes"] - facts["band_from_bytes"] < weights_bytes / 2
    assert rows["5 workers"]["weights_bytes"] == weights_bytes
    assert rows["5 plain processes"]["total_bytes"] - rows["5 workers"]["total_bytes"] > 4 * weights_bytes
    assert sum(facts["runs_by_worker"]) == 5 * 30 * 2
    assert min(facts["runs_by_worker"]) >= 30
    assert facts["equal_to_plain"]


def test_attached_processes_have_hooks_and_caches_and_no_weights_of_their_own():
    rows, facts = run("hooked_transformer")
    weights_bytes = rows["the pool, 1 worker"]["weights_bytes"]
    assert weights_bytes > 150 * MB
    attached_bytes = rows["2 attached processes, each"]["total_bytes"]
    assert rows["a plain process"]["total_bytes"] - attached_bytes > 0.8 * weights_bytes
    assert facts["attached_processes"] == 2
    assert facts["pool_equal_to_plain"]
    assert facts["attached_equal_to_plain"] == [True, True]
    assert facts["a_silent_head_changes_the_logits"]


def test_tokens_come_as_they_are_made_and_stop_when_nobody_reads():
    _, facts = run("streamed_tokens")
    assert facts["equal_to_all_at_once"]
    assert 0 < facts["first_token_after_s"] < facts["last_token_after_s"]
    assert 5 <= facts["tokens_made_for_a_reader_of_5"] < facts["tokens_asked_for"] / 2


def test_a_model_and_its_draft_share_what_they_can():
    rows, facts = run("assisted_generation")
    assert facts["assisted_writes_the_same"]
    assert facts["assisted_shares_with"] == ["large"]
    grew_bytes = rows["'assisted' used"]["weights_bytes"] - rows["'large' used"]["weights_bytes"]
    assert facts["draft_without_embedding_bytes"] <= grew_bytes < facts["draft_without_embedding_bytes"] + MB
    assert facts["large_bytes"] < facts["assisted_bytes"] < facts["large_bytes"] + grew_bytes + MB


def test_joblib_uses_every_worker():
    pytest.importorskip("joblib")
    _, facts = run("joblib_threads")
    assert facts["workers_that_ran"] == 2
    assert facts["equal_to_plain"]


def test_four_kinds_of_models_share_a_memory_that_is_not_enough_for_all():
    rows, facts = run("many_kinds")
    assert facts["answers"] == facts["equal_to_plain_torch"] == 16
    assert facts["streamed"]
    assert facts["evictions"] > 0
    assert facts["on_the_disk_bytes"] > 0
    assert rows["room for some"]["total_bytes"] <= facts["budget_bytes"]
    assert rows["room for some"]["weights_bytes"] < rows["room for all"]["weights_bytes"]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_each_device_has_its_own_copies_and_its_own_work_memory(kind, tmp_path, monkeypatch):
    if kind == "cuda":
        card = "gpu GPU-0000000{0}-0000-4000-8000-00000000000{0} 4294967296 0 Stand-in\n"
        (tmp_path / "gpus").write_text(card.format(1) + card.format(2))
        monkeypatch.setenv("STAND_IN_GPUS", str(tmp_path / "gpus"))
    with cuda_driver.for_processes(tmp_path):
        _, facts = run("several_devices", "--kind", kind)
    assert facts["equal_to_plain"]
    assert facts["devices"]["both"] == [f"{kind}:0", f"{kind}:1"]
    assert min(facts["both_answered"].values()) > 0
    groups = {f"{kind}0_generator": ["decoder", "unet"], f"{kind}1_device": ["both", "large", "small"]}
    for group, models in groups.items():
        assert facts[f"{group}_models"] == models
        assert facts[f"{group}_largest_need_bytes"] < facts[f"{group}_sum_of_needs_bytes"]
    assert facts[f"{kind}0_device_models"] == ["both"]
    assert min(facts[f"{kind}{device}_weights_bytes"] for device in (0, 1)) > 0
    assert facts["spills_of_two_runs_that_need_more"] == [1, 0]
    assert facts["larger_than_the_room_on_the_first_went_to"] == f"{kind}:1"
