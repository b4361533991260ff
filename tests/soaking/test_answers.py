"""Right answers, recomputed: of a version that there was, of the request's own data, whole, and in order."""

import numpy as np
import pytest
from soaking import pattern
from soaking.answers import RightAnswers, Versions
from soaking.books import Asked
from soaking.load import put_together
from soaking.models import Stamp

SEED = 7


@pytest.fixture(scope="module")
def stamp():
    return Stamp(SEED, 1 << 12)


@pytest.fixture
def versions():
    versions = Versions()
    versions.begin("m", SEED, 0.0).done_at = 1.0
    return versions


def complaint(versions, what, answer, asked_at=2.0, answered_at=3.0):
    return RightAnswers(versions).complaint(Asked(asked_at, "m", what), answer, answered_at)


def answers(stamp):
    """What a model makes of each kind of request."""
    rows = stamp.rows(np.array([[5, 10], [6, 4000]]))
    return {
        ("small", "t", 100, 3): stamp("t", 100, 3),
        ("nap", "t"): stamp.nap("t", 0.0),
        ("array", "t", 1000): ["t", SEED, pattern.digest(stamp.array("t", pattern.array_of("t", 1000))[2])],
        ("items", "t", 4): put_together(list(stamp.items("t", 4))),
        ("count", "t", "s"): stamp.count("t", "s"),
        ("rows", 5, (10, 4000)): rows.tolist(),
    }


def test_what_a_model_makes_is_right(stamp, versions):
    for what, answer in answers(stamp).items():
        assert complaint(versions, what, answer) == "", what


def test_what_another_request_gets_is_wrong(stamp, versions):
    for what, answer in answers(stamp).items():
        other = (what[0], 6 if what[0] == "rows" else "u", *what[2:])
        assert "it got the" in complaint(versions, other, answer), what


def test_what_other_weights_make_is_wrong(stamp, versions):
    with_other_weights = Stamp(SEED + 1, 1 << 12)
    with_other_weights.version.fill_(SEED)
    for what, answer in answers(with_other_weights).items():
        assert "is right" in complaint(versions, what, answer), what


def test_one_element_of_an_array_that_is_torn_is_seen(stamp, versions):
    y = stamp.array("t", pattern.array_of("t", 1000))[2]
    y[500] = 0
    assert "is right" in complaint(versions, ("array", "t", 1000), ["t", SEED, pattern.digest(y)])


@pytest.mark.parametrize("take", [lambda items: items[1:], lambda items: items[::-1], lambda items: items[:1] * 4])
def test_a_stream_with_items_amiss_is_seen(stamp, versions, take):
    items = take(list(stamp.items("t", 4)))
    assert complaint(versions, ("items", "t", 4), put_together(items))


def test_what_is_no_answer_is_wrong(versions):
    assert complaint(versions, ("small", "t", 0, 1), None) == "None is no answer"
    assert "rows of shape" in complaint(versions, ("rows", 5, (10,)), [])


def test_an_answer_is_of_a_version_that_there_was_then(stamp, versions):
    what, answer = ("nap", "t"), stamp("t", 0, 64)
    newer = versions.begin("m", 8, 5.0)
    assert complaint(versions, what, answer, 6.0, 7.0) == ""  # the newer one may not be there yet
    newer.done_at = 6.5
    assert complaint(versions, what, answer, 6.0, 7.0) == ""  # it came while this was under way
    assert "had been replaced" in complaint(versions, what, answer, 6.6, 7.0)
    newer.has_failed = True
    assert complaint(versions, what, answer, 6.6, 7.0) == ""
    assert "could not be loaded" in complaint(versions, what, ["t", 8, 0], 6.6, 7.0)
    assert "never a version 9" in complaint(versions, what, ["t", 9, 0])
    versions.begin("m", 10, 50.0)
    assert "came 40.000 s later" in complaint(versions, what, ["t", 10, 0], 9.0, 10.0)


def test_a_session_runs_each_call_once_and_in_order(stamp, versions):
    right = RightAnswers(versions)
    figure = pattern.figure(SEED, 0, 64)

    def call(tag, pid, calls):
        return right.complaint(Asked(2.0, "m", ("count", tag, "s")), [tag, SEED, figure, pid, calls], 3.0)

    assert [call("a", 1, 1), call("b", 1, 2), call("c", 2, 1), call("d", 2, 2)] == [""] * 4  # the first has died
    assert "call 2 of session s in 2 came after 2" in call("e", 2, 2)
    assert "call 4 of session s in 2 came after 2" in call("f", 2, 4)
