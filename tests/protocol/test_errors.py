"""The error tree: every error survives the wire, and no record from there can make anything else of it."""

import copy
import pickle

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol import errors
from onecopy.protocol.errors import InvalidRequest, LoadFailed, ModelError, PoolError, from_record
from onecopy.protocol.limits import MAX_ERROR_TEXT

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PoolError)),
    key=lambda kind: kind.code,
)


def travelled(error):
    """The error after a record of it was packed and unpacked."""
    return from_record(msgpack.unpackb(msgpack.packb(error.to_record())))


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_the_wire_pickling_and_copying(kind):
    error = kind("it did not work", deaths=2, cause="SIGSEGV")
    for again in (travelled(error), pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (again.message, again.details) == ("it did not work", {"deaths": 2, "cause": "SIGSEGV"})
        assert str(again) == "it did not work"
        assert again.args == ("it did not work",)


def test_codes_are_unique_and_every_error_names_who_can_mend_it():
    assert len({kind.code for kind in KINDS}) == len(KINDS)
    assert {kind.fault for kind in KINDS} == {"caller", "model", "pool"}


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        ("deadline_exceeded", TimeoutError),
        ("model_not_found", LookupError),
        ("out_of_budget", MemoryError),
        ("workspace_overflow", MemoryError),
        ("invalid_request", ValueError),
        ("supervisor_lost", ConnectionError),
    ],
)
def test_errors_that_have_a_builtin_counterpart_are_caught_as_it(code, builtin):
    assert isinstance(from_record({"code": code}), builtin)


@pytest.mark.parametrize("kind", [ModelError, LoadFailed])
def test_a_remote_traceback_is_part_of_what_is_printed(kind):
    error = kind("m: ValueError: no", exception="ValueError", traceback="Traceback: ...\nValueError: no\n")
    assert str(travelled(error)) == "m: ValueError: no\n\nTraceback: ...\nValueError: no"


@pytest.mark.parametrize("code", ["SystemExit", "builtins.KeyboardInterrupt", "", None, 7, ["invalid_request"]])
def test_an_unknown_code_gives_the_base_error(code):
    assert type(from_record({"code": code, "message": "from a newer peer"})) is PoolError


wire_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["code", "message", "details", "other"]), wire_values))
def test_whatever_a_record_holds_it_becomes_an_error(record):
    error = from_record(record)
    assert isinstance(error, PoolError)
    assert type(travelled(error)) is type(error)


class Opaque:
    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        (Opaque(), "<Opaque>"),
        ({1: 2}, "<dict>"),
        (1 << 70, "<int>"),
        ((1, [2, "a"], None, True, 0.5), [1, [2, "a"], None, True, 0.5]),
        ([[[1]]], [["<list>"]]),
        (list(range(1000)), list(range(100))),
        ("file-\udcff", "file-\\udcff"),
    ],
)
def test_an_error_with_any_details_can_be_told(detail, told):
    assert travelled(InvalidRequest("no", what=detail)).details == {"what": told}


def test_a_message_that_has_no_encoding_can_be_told():
    assert travelled(ModelError("cannot open 'a\udcff.bin'")).message == "cannot open 'a\\udcff.bin'"


def test_a_huge_message_is_cut_in_its_middle():
    told = travelled(ModelError("begin" + "x" * 10_000_000 + "end", traceback="y" * 10_000_000))
    assert len(told.message) < MAX_ERROR_TEXT + 10
    assert len(told.details["traceback"]) < MAX_ERROR_TEXT + 10
    assert told.message.startswith("begin")
    assert told.message.endswith("end")
