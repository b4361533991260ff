"""Every parser of bytes from outside: each input gets a value that is whole, or an error that says what is wrong.

The same targets as of ``scripts/fuzz``, which searches for as long as one likes; here are few, always the same.
"""

import random

import pytest
from fuzzing.corpus import REGRESSIONS, regressions
from fuzzing.targets import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

#: Some are slower than others, which write files or open descriptors.
EXAMPLES = {"header": 600, "manifest": 300, "safetensors": 300, "job": 50}
KEPT = [(name, data) for name in TARGETS for data in regressions(name)]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_right(name):
    for data in TARGETS[name].seeds():
        TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_changed_gets_a_value_or_a_clear_error(name):
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES.get(name, 150), deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(target.seeds()), st.lists(st.integers(0, 1 << 32), min_size=1, max_size=3))
    def check(data, changes):
        for seed in changes:
            data = target.changed(data, random.Random(seed))
        target.check(data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_nothing_like_it_gets_a_clear_error(name):
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=300))
    def check(data):
        TARGETS[name].check(data)

    check()


@pytest.mark.parametrize(("name", "data"), KEPT, ids=[f"{name}-{index}" for index, (name, _) in enumerate(KEPT)])
def test_what_was_got_wrong_once_is_right(name, data):
    TARGETS[name].check(data)


def test_every_kept_input_is_of_a_target():
    assert {path.name for path in REGRESSIONS.iterdir()} <= set(TARGETS)
