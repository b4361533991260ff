"""How many run at once: what brings the most done is found, and nothing is tried where it would tell nothing."""

import pytest
from onecopy.pool.core.concurrency import FIRST_PAUSE_S, WINDOW_S, Concurrency


def drive(concurrency, rate_of, seconds, *, is_saturated=True, start=0.0, per_s=200):
    """Let attempts end, each as much work as this many at once do; return the limits that were seen."""
    seen = []
    for step in range(int(seconds * per_s)):
        now = start + step / per_s
        concurrency.ended(rate_of(concurrency.limit) / per_s, now, is_saturated=is_saturated)
        seen.append(concurrency.limit)
    return seen


def test_fewer_are_kept_where_they_do_more():
    one = Concurrency(8, is_adaptive=True)
    drive(one, lambda limit: {8: 5.0, 7: 5.5, 6: 6.1, 5: 7.0, 4: 8.0}.get(limit, 4.0), 300)
    assert one._kept == 4
    assert "times what 4 do" in one.note or "trying" in one.note


def test_all_are_kept_where_more_do_more_and_trials_become_rare():
    one = Concurrency(4, is_adaptive=True)
    seen = drive(one, lambda limit: float(limit), 600)
    assert one._kept == 4
    assert sum(limit != 4 for limit in seen) / len(seen) < 0.05


def test_a_little_more_is_no_reason():
    one = Concurrency(4, is_adaptive=True)
    drive(one, lambda limit: 1.0 + 0.01 * (4 - limit), 300)
    assert one._kept == 4


def test_nothing_is_tried_while_there_is_room():
    one = Concurrency(4, is_adaptive=True)
    assert set(drive(one, lambda limit: 1.0, 300, is_saturated=False)) == {4}


def test_a_trial_ends_when_there_is_less_to_do():
    one = Concurrency(4, is_adaptive=True)
    end = FIRST_PAUSE_S
    assert set(drive(one, float, end)) == {4}, "something is tried before it is worth while"
    while one.limit == 4:
        drive(one, float, 0.1, start=end)
        end += 0.1
    assert one.limit == 3
    assert end < FIRST_PAUSE_S + 3 * WINDOW_S
    one.ended(1.0, end, is_saturated=False)
    assert one.limit == 4
    assert set(drive(one, float, FIRST_PAUSE_S - 5, start=end)) == {4}


@pytest.mark.parametrize("one", [Concurrency(4, is_adaptive=False), Concurrency(1, is_adaptive=True)])
def test_what_is_fixed_stays(one):
    most = one.limit
    assert set(drive(one, lambda limit: 1.0 / limit, 100)) == {most}
    assert one.note == "fixed"
