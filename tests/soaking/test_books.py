"""Books that are told of a wrong answer, a second, a lost or another's: each time they must say so."""

import pytest
from soaking.acts import ANY, Acts
from soaking.books import Asked, Books, Key

ANN, BOB = Key("ann", 1), Key("bob", 1)


@pytest.fixture
def acts():
    return Acts()


@pytest.fixture
def books(acts):
    """Books for whom the right answer is what was asked."""
    return Books(lambda asked, answer, _: "" if answer == asked.what else f"it got {answer}", acts)


def ask(books, key=ANN, at=1.0, what=("a",), **more):
    books.asked(key, Asked(at, "m", what, **more))


def test_what_is_answered_once_and_rightly_is_right(books):
    ask(books)
    ask(books, BOB)
    books.answered(ANN, ("a",), 2.0)
    books.answered(BOB, ("a",), 2.0)
    books.settle()
    books.check_sums()
    assert (books.violations, books.accepted, books.outcomes["answered"]) == ([], 2, 2)


def test_a_wrong_answer_is_told_with_what_was_asked(books):
    ask(books)
    books.answered(ANN, ("b",), 2.0)
    assert len(books.violations) == 1
    assert "('a',): it got ('b',)" in books.violations[0]


@pytest.mark.parametrize("second", ["answered", "failed", "given up"])
def test_a_second_end_is_told(books, second):
    ask(books, may=("model_error",))
    books.answered(ANN, ("a",), 2.0)
    ends = {
        "answered": lambda: books.answered(ANN, ("a",), 2.0),
        "failed": lambda: books.failed(ANN, "model_error", 2.0),
        "given up": lambda: books.given_up(ANN),
    }
    ends[second]()
    assert len(books.violations) == 1
    assert "had ended before" in books.violations[0]
    assert books.outcomes.total() == 1


def test_an_answer_that_nobody_asked_for_is_told(books):
    ask(books)
    books.answered(Key("ann", 2), ("a",), 2.0)
    assert "nobody had asked" in books.violations[0]


def test_a_lost_request_is_told_in_the_end_and_not_before(books):
    ask(books)
    ask(books, BOB)
    books.check_sums()
    assert books.violations == []
    books.settle("bob")
    books.settle()
    assert len(books.violations) == 2
    assert all("was never answered" in one for one in books.violations)


def test_nobody_is_owed_what_a_client_asked_that_was_killed(books):
    ask(books)
    ask(books, BOB)
    books.left("ann")
    assert not books.is_owed("ann")
    assert books.is_owed("bob")
    assert books.outcomes == {"client gone": 1}
    books.answered(BOB, ("a",), 2.0)
    books.settle()
    assert books.violations == []


def test_a_request_that_is_asked_twice_is_told(books):
    ask(books)
    ask(books)
    assert "was asked twice" in books.violations[0]


def test_sums_that_do_not_agree_are_told(books):
    ask(books)
    books.accepted += 1
    books.check_sums()
    assert "2 were accepted, and 1 are known" in books.violations[0]


def test_complaints_beyond_the_first_few_are_counted(books):
    for number in range(100):
        books.complain(str(number))
    assert books.wrong == 100
    assert books.violations == [str(number) for number in range(50)]


# --- errors --------------------------------------------------------------------------------------------------


def failed(books, code, at=2.0, **asked):
    """Whether an error is defensible."""
    ask(books, **asked)
    books.failed(ANN, code, at)
    return not books.violations


def test_an_error_that_nothing_allows_is_told(books):
    assert not failed(books, "out_of_budget")
    assert "failed with out_of_budget: nothing that was done allows that" in books.violations[0]


def test_an_error_that_the_request_asks_for_is_right(books):
    assert failed(books, "model_error", may=("model_error",))


@pytest.mark.parametrize(
    ("deaths", "retries", "is_right"), [(0, 0, False), (1, 0, True), (1, 1, False), (2, 1, True)]
)
def test_a_death_needs_as_many_kills_as_it_survives_and_one(books, acts, deaths, retries, is_right):
    acts.died(1.5, deaths)
    acts.died(100.0, 10)
    assert failed(books, "worker_died", retries=retries) == is_right


def test_one_death_may_end_a_stream(books, acts):
    acts.died(1.5)
    assert failed(books, "worker_died", retries=5, is_stream=True)


@pytest.mark.parametrize(("timeout_s", "is_right"), [(0.0, False), (0.5, True), (1.0, True), (3.0, False)])
def test_a_deadline_is_not_exceeded_early_or_where_there_is_none(books, timeout_s, is_right):
    assert failed(books, "deadline_exceeded", timeout_s=timeout_s) == is_right


@pytest.mark.parametrize(
    ("model", "from_s", "to_s", "is_right"),
    [
        ("m", 0.5, 1.5, True),
        (ANY, 1.2, 1.4, True),
        ("other", 0.5, 1.5, False),
        ("m", 2.6, 9.0, False),
        ("m", 0.0, 0.4, False),
    ],
)
def test_an_act_allows_an_error_of_its_models_while_it_lasts(books, acts, model, from_s, to_s, is_right):
    acts.allow("load_failed", model, from_s).to_s = to_s
    assert failed(books, "load_failed") == is_right
