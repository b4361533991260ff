"""The worker's side of mailboxes: copies out, copies in, nothing beyond what it was given."""

import os

import numpy as np
import pytest
from onecopy.protocol.errors import InvalidRequest, PoolError
from onecopy.protocol.messages import MapMailbox, UnmapMailbox
from onecopy.workers.mailboxes import Mailboxes

SIZE_BYTES = 1 << 16


@pytest.fixture
def region():
    fd = os.memfd_create("mailbox")
    os.ftruncate(fd, SIZE_BYTES)
    yield fd
    os.close(fd)


@pytest.fixture
def mailboxes(region):
    mailboxes = Mailboxes()
    fds = [os.dup(region)]
    mailboxes.map(MapMailbox(7, SIZE_BYTES), fds)
    assert fds == []
    return mailboxes


def test_what_a_mailbox_holds_is_copied_out_beside_what_follows(mailboxes, region):
    os.pwrite(region, b"abc", 64)
    first, second = mailboxes.take([[7, 64, 3], []], [b"follows"])
    assert (bytes(first), second) == (b"abc", b"follows")
    first[0] = ord("x")
    assert os.pread(region, 3, 64) == b"abc"
    os.pwrite(region, b"zzz", 64)
    assert bytes(first) == b"xbc"


def test_without_places_everything_follows(mailboxes):
    following = [b"a", b"b"]
    assert mailboxes.take([], following) is following


def test_results_are_copied_in_as_far_as_they_fit(mailboxes, region):
    buffers = [np.full(size, fill, np.uint8).data for fill, size in enumerate([100, 1000, 50], 1)]
    places, following = mailboxes.put([7, 128, 256], buffers)
    assert places == [[0, 100], [], [128, 50]]
    assert following == [buffers[1]]
    assert os.pread(region, 512, 0) == bytes(128) + b"\1" * 100 + bytes(28) + b"\3" * 50 + bytes(206)


def test_a_result_of_which_nothing_fits_follows_whole(mailboxes, region):
    buffers = [bytes(1000)]
    assert mailboxes.put([7, 0, 999], buffers) == ([], buffers)
    assert mailboxes.put([], buffers) == ([], buffers)
    assert mailboxes.put([7, 0, 999], []) == ([], [])


def test_nothing_is_mapped_any_more_once_it_is_let_go(mailboxes, region):
    kept = mailboxes.take([[7, 0, 64]], [])
    mailboxes.unmap(UnmapMailbox(7))
    with open("/proc/self/maps") as maps:
        assert "memfd:mailbox" not in maps.read()
    assert bytes(kept[0]) == bytes(64)


def test_a_mailbox_that_cannot_be_mapped_is_told_of_by_each_run(region):
    mailboxes = Mailboxes()
    mailboxes.map(MapMailbox(7, 2 * SIZE_BYTES), [os.dup(region)])
    for _ in range(2):
        with pytest.raises(PoolError, match=r"mailbox 7 cannot be used here: .* the region has 65536"):
            mailboxes.take([[7, 0, 64]], [])
    mailboxes.unmap(UnmapMailbox(7))


def test_places_that_contradict_what_follows_are_refused(mailboxes):
    with pytest.raises(InvalidRequest, match="2 buffers follow the message; 1 do"):
        mailboxes.take([[], []], [b"x"])
