"""Processes of an experiment: what they send arrives, and however they end is told."""

import os

import pytest
from gpu_checking.children import Child, ChildFailed
from leftovers import pool_processes
from own_roles import echoes, ends_itself, exits, returns, sleeps

pytestmark = pytest.mark.usefixtures("children_find_modules")


def test_values_arguments_and_descriptors_travel_both_ways(tmp_path):
    path = tmp_path / "file"
    path.write_text("inside")
    fd = os.open(path, os.O_RDONLY)
    with Child(echoes, 1, [2, "three"], environment={"SETTING": "here"}) as child:
        assert child.receive().values == {"arguments": [1, [2, "three"]], "setting": "here"}
        answer = child.ask(20, [fd, fd], say={"a": None})
        assert answer.values == {"said": {"a": None}, "texts": ["inside", "inside"], "inheritable": [False, False]}
        assert [os.pread(one, 100, 0) for one in answer.fds] == [b"inside", b"inside"]
        for one in [fd, *answer.fds]:
            os.close(one)
        assert child.ask(say=1).fds == []


@pytest.mark.parametrize(
    ("role", "message", "kind"),
    [
        (echoes, "echoes: KeyError: 'say'", "KeyError"),
        (exits, "exits: ended with exit code 3: last words", "exit code 3"),
        (ends_itself, 'ends_itself: ended with SIGABRT: File "', "SIGABRT"),
        (returns, "returns: ended with exit code 0", "exit code 0"),
    ],
)
def test_however_a_child_ends_is_told(role, message, kind):
    with Child(role) as child:
        if role is echoes:
            child.receive()
            child.send(other=1)
        with pytest.raises(ChildFailed) as failed:
            child.receive()
        assert str(failed.value).startswith(message)
        assert failed.value.kind == kind
        if role is returns:
            with pytest.raises(ChildFailed, match="returns: ended"):
                child.send(say=1)


def test_a_child_that_does_not_answer_is_told_and_can_be_killed():
    with Child(sleeps) as child:
        assert child.receive()["pid"] == child.pid
        with pytest.raises(ChildFailed, match=r"sleeps: no answer within 0\.05 s") as failed:
            child.receive(0.05)
        assert failed.value.kind == "TimeoutError"
        with pytest.raises(ChildFailed, match=r"sleeps: no answer within 0\.05 s"):
            child.receive()  # a late answer is none to a later question
        assert child.kill() > 0
        with pytest.raises(ChildFailed, match="sleeps: ended with SIGKILL"):
            child.send(go=True)
    child.close()  # once more is harmless
    assert child.pid not in pool_processes()


def test_a_child_ends_by_itself_when_its_link_is_closed():
    with Child(echoes) as child:
        child.receive()
        child.join()
        assert child.process.returncode == 1  # by the EOFError of its receive
