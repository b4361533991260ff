"""Channels over real sockets: order, descriptors, full sockets, ends; nothing is lost, nothing leaks."""

import array
import os
import resource
import socket
import struct
import threading
import weakref
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecopy.protocol import channel as channel_module
from onecopy.protocol.channel import Channel
from onecopy.protocol.errors import InvalidRequest
from onecopy.protocol.frames import pack_header, stream_parts
from onecopy.protocol.limits import MAX_FDS
from onecopy.protocol.messages import Done, MoreDescriptors, Ping, Pong, Released


@contextmanager
def channels(*, blocking=True, small=False):
    """Two ends of a connection; ``small``: the sockets hold as little as the kernel allows."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in ends:
        sock.setblocking(blocking)
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    left, right = map(Channel, ends)
    try:
        yield left, right
    finally:
        left.close()
        right.close()


@contextmanager
def pipe_ends(count):
    """Descriptors that can be told apart: each is the read end of a pipe that holds its number."""
    with ExitStack() as stack:
        fds = []
        for index in range(count):
            read, write = os.pipe()
            os.write(write, struct.pack("<I", index))
            os.close(write)
            fds.append(read)
            stack.callback(os.close, read)
        yield fds


def take_numbers(fds):
    """Read what tells descriptors apart, and close them: each is a duplicate of one that is read once."""
    numbers = []
    for fd in fds:
        assert not os.get_inheritable(fd)
        numbers.append(struct.unpack("<I", os.read(fd, 4))[0])
        os.close(fd)
    return numbers


def nodes_of(fds):
    """What tells files apart, however often each is open."""
    return [os.fstat(fd).st_ino for fd in fds]


def open_count():
    return len(os.listdir("/proc/self/fd"))


def received(channel, count):
    return [channel.receive() for _ in range(count)]


def test_what_may_be_sent_soon_goes_before_what_is_sent_after_it():
    with channels() as (left, right), pipe_ends(1) as fds:
        for number in range(3):
            left.send_soon(Released(number))
        left.send(Released(3), [b"buffer"], fds)
        left.send_soon(Released(4))
        left.flush()
        arrived = received(right, 5)
        assert [one.message for one in arrived] == [Released(number) for number in range(5)]
        assert [len(one.fds) for one in arrived] == [0, 0, 0, 1, 0]
        arrived[3].close_fds()


def test_what_may_be_sent_soon_waits_for_its_turn_where_the_socket_is_full():
    with channels(blocking=False, small=True) as (left, right):
        left.send(Done("x" * 400_000))
        assert left.has_unsent
        for number in range(100):
            left.send_soon(Released(number))
        arrived = []
        while len(arrived) < 101:
            left.flush()
            arrived += [one.message for one in right.arrived()]
        assert arrived[1:] == [Released(number) for number in range(100)]


# --- blocking ------------------------------------------------------------------------------------------------


def test_a_message_arrives_with_its_buffers():
    with channels() as (left, right):
        left.send(Released(1), [b"", bytearray(b"abc"), memoryview(b"d" * 1000)])
        message, buffers, fds = right.receive()
    assert (message, buffers, fds) == (Released(1), [b"", b"abc", b"d" * 1000], [])


def test_a_large_message_is_sent_while_the_other_side_reads():
    payload = os.urandom(5 << 20)
    with channels() as (left, right):
        sender = threading.Thread(target=left.send, args=(Done("x" * 500_000), [payload, b"end"]))
        sender.start()
        message, buffers, _ = right.receive()
        sender.join()
    assert message == Done("x" * 500_000)
    assert buffers == [payload, b"end"]


def test_more_buffers_than_one_system_call_takes_arrive():
    with channels() as (left, right):
        sent = [bytes([index % 256]) * (index % 7) for index in range(3000)]
        sender = threading.Thread(target=left.send, args=(Ping(), sent))
        sender.start()
        assert right.receive().buffers == sent
        sender.join()


def test_descriptors_come_with_the_message_that_they_were_sent_with():
    with channels() as (left, right), pipe_ends(6) as fds:
        left.send(Released(1), fds=fds[:1])
        left.send(Released(2), [b"x" * 100])
        left.send(Released(3), fds=fds[1:4])
        left.send(Released(4), [b"y"], fds=fds[4:])
        left.send(Released(5))
        deliveries = received(right, 5)
    assert [one.message.request for one in deliveries] == [1, 2, 3, 4, 5]
    assert [take_numbers(one.fds) for one in deliveries] == [[0], [], [1, 2, 3], [4, 5], []]


@pytest.mark.parametrize("count", [MAX_FDS, MAX_FDS + 2, 2 * MAX_FDS, 600])
def test_descriptors_travel_however_many_and_stay_those_of_their_message(count):
    with channels() as (left, right), pipe_ends(10) as few:
        fds = [few[index * 7 % 10] for index in range(count)]
        left.send(Released(1), [b"x" * 100], fds)
        left.send(Released(2), fds=few[:1])
        first, second = received(right, 2)
        assert (first.message, first.buffers) == (Released(1), [b"x" * 100])
        assert nodes_of(first.fds) == nodes_of(fds)
        assert nodes_of(second.fds) == nodes_of(few[:1])
        assert not any(os.get_inheritable(fd) for fd in first.fds)
        first.close_fds()
        second.close_fds()


def test_the_end_of_the_stream_is_told():
    with channels() as (left, right):
        left.send(Ping())
        left.close()
        assert right.receive().message == Ping()
        assert not right.is_at_end
        assert right.receive() is None
        assert right.is_at_end
        assert right.receive() is None
        with pytest.raises(OSError, match="Broken pipe"):
            right.send(Pong())


def test_an_end_that_leaves_things_unread_is_an_end_behind_all_that_was_said_before():
    with channels() as (left, right):
        right.send(Pong())  # the kernel tells of a reset if it was not read
        left.send(Ping())
        left.close()
        assert right.receive().message == Ping()
        assert right.receive() is None
        assert right.is_at_end


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 90_000])
def test_an_end_in_the_middle_of_a_message_is_an_end_and_leaks_nothing(cut):
    with channels() as (left, right), pipe_ends(2) as fds:
        stream = b"".join(map(bytes, stream_parts(Released(1), [b"small", b"z" * 100_000], 2)))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        left.socket.sendmsg([stream[:cut]], rights)
        left.close()
        before = open_count()
        assert right.receive() is None
        assert right.is_at_end
        right.close()
        assert open_count() == before - 1  # the socket


# --- non-blocking --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_kept_in_order_and_flushed():
    with channels(blocking=False, small=True) as (left, right):
        sent = [(Released(index), [bytes([index]) * 3000]) for index in range(50)]
        for message, buffers in sent:
            left.send(message, buffers)
        assert left.has_unsent
        arrived = []
        while len(arrived) < len(sent):
            arrived += [(one.message, one.buffers) for one in right.arrived()]
            left.flush()
        assert arrived == sent
        assert not left.has_unsent
        assert list(right.arrived()) == []
        assert not right.is_at_end
        left.close()
        assert list(right.arrived()) == []
        assert right.is_at_end


def test_what_arrives_is_read_once_unless_all_of_it_is_wanted():
    with channels(blocking=False) as (left, right), pipe_ends(3) as fds:
        for index, fd in enumerate(fds):  # the kernel gives the descriptors of one message at a time
            left.send(Released(index), fds=[fd])
        [first] = right.arrived()
        assert (first.message, take_numbers(first.fds)) == (Released(0), [0])
        rest = list(right.arrived(until_empty=True))
        assert [(one.message, take_numbers(one.fds)) for one in rest] == [(Released(1), [1]), (Released(2), [2])]


def test_the_end_behind_the_last_message_is_found_at_once_when_all_is_wanted():
    with channels(blocking=False) as (left, right):
        left.send(Ping())
        left.close()
        assert [one.message for one in right.arrived(until_empty=True)] == [Ping()]
        assert right.is_at_end


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 10, 3000, 200_000]), st.booleans()), max_size=12),
    st.sampled_from([2, MAX_FDS]),
)
def test_descriptors_keep_their_order_when_writes_are_partial(plan, at_once):
    """Descriptors and bytes in any mixture, over sockets that are mostly full, read at any moment."""
    before = open_count()
    with (
        pytest.MonkeyPatch.context() as patched,
        channels(blocking=False, small=True) as (left, right),
        pipe_ends(sum(one[0] for one in plan)) as fds,
    ):
        patched.setattr(channel_module, "MAX_FDS", at_once)  # with fewer, most messages need several
        arrived, next_fd = [], 0
        for index, (count, size, is_read_now) in enumerate(plan):
            left.send(Released(index), [b"b" * size], fds[next_fd : next_fd + count])
            next_fd += count
            if is_read_now:
                arrived += right.arrived()
                left.flush()
        while len(arrived) < len(plan):
            left.flush()
            arrived += right.arrived()
        numbers = [take_numbers(one.fds) for one in arrived]
        assert [number for few in numbers for number in few] == list(range(next_fd))
        assert [len(few) for few in numbers] == [count for count, _, _ in plan]
        assert [one.message.request for one in arrived] == list(range(len(plan)))
        assert [len(one.buffers[0]) for one in arrived] == [size for _, size, _ in plan]
    assert open_count() == before


def test_the_caller_may_close_its_descriptors_once_they_are_sent():
    with channels(blocking=False, small=True) as (left, right):
        with pipe_ends(20) as fds:
            for fd in fds:
                left.send(Ping(), [bytes(5000)], [fd])
        assert left.has_unsent
        arrived = []
        while len(arrived) < 20:
            arrived += right.arrived()
            left.flush()
        assert [take_numbers(one.fds) for one in arrived] == [[index] for index in range(20)]


def test_closing_gives_back_descriptors_that_were_not_sent_and_those_that_nobody_took():
    with pipe_ends(30) as fds:
        before = open_count()
        with channels(blocking=False, small=True) as (left, right):
            for fd in fds:
                left.send(Ping(), [bytes(100)], [fd])
            left.send(Ping(), [bytes(500_000)], fds)
            assert left.has_unsent
            assert open_count() >= before + 2 + len(fds)  # duplicates wait with the message
            first = next(right.arrived(until_empty=True))
            assert take_numbers(first.fds) == [0]
        assert open_count() == before
        left.close()
        assert open_count() == before


def test_descriptors_that_wait_are_given_back_when_the_other_end_is_gone():
    with pipe_ends(3) as fds:
        before = open_count()
        with channels(blocking=False, small=True) as (left, right):
            left.send(Ping(), [bytes(500_000)])
            left.send(Pong(), [], fds)
            left.send(Ping(), [], fds)
            right.close()
            with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
                left.flush()
            with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
                left.flush()
        assert open_count() == before


def test_descriptors_that_cannot_be_duplicated_leave_nothing_behind():
    with channels(blocking=False, small=True) as (left, right), pipe_ends(4) as fds:
        left.send(Ping(), [bytes(500_000)])
        before = open_count()
        with pytest.raises(OSError, match="Bad file descriptor"):
            left.send(Pong(), [], [*fds, 1 << 20])
        assert open_count() == before
        arrived = []
        while left.has_unsent or not arrived:
            arrived += right.arrived()
            left.flush()
        assert [one.message for one in arrived] == [Ping()]


# --- peers that do not keep to the rules ---------------------------------------------------------------------


def raw(sock, data, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


def message_of(fds):
    header = pack_header(Ping())
    return struct.pack("<BBHI", 1, fds, 0, len(header)) + header


def refuse(right, complaint):
    before = open_count()
    with pytest.raises(InvalidRequest, match=complaint):
        list(right.arrived())
    right.close()
    assert open_count() <= before  # what came was open only inside the channel


def test_a_message_without_the_descriptors_that_it_names_is_refused():
    with channels(blocking=False) as (left, right):
        raw(left.socket, message_of(2))
        refuse(right, "Ping came with 0 fds instead of 2")


def test_descriptors_that_no_message_claims_are_refused_and_closed():
    with channels(blocking=False) as (left, right), pipe_ends(3) as fds:
        before = open_count()
        raw(left.socket, message_of(1), fds)
        assert take_numbers(next(right.arrived()).fds) == [0]
        refuse(right, "2 fds came that no message claims")
        assert open_count() == before - 1  # the socket


def test_descriptors_cannot_be_piled_up_behind_a_message_that_never_ends():
    with channels(blocking=False) as (left, right), pipe_ends(200) as fds:
        before = open_count()
        raw(left.socket, message_of(0)[:4], fds)
        assert list(right.arrived()) == []
        raw(left.socket, message_of(0)[4:6], fds)
        refuse(right, "400 fds came that no message claims")
        assert open_count() == before - 1


def test_descriptors_ahead_of_a_message_that_never_comes_are_closed_with_the_channel():
    with channels(blocking=False) as (left, right), pipe_ends(3) as fds:
        before = open_count()
        left.send(MoreDescriptors(), fds=fds)
        assert list(right.arrived(until_empty=True)) == []
        assert open_count() == before + 3
        right.close()
        assert open_count() == before - 1  # the socket


def test_descriptors_cannot_be_piled_up_ahead_of_a_message(monkeypatch):
    monkeypatch.setattr(channel_module, "MAX_FDS_AHEAD", 500)  # of the real bound, few processes may open so many
    with channels(blocking=False) as (left, right), pipe_ends(200) as fds:
        before = open_count()
        for _ in range(2):
            left.send(MoreDescriptors(), fds=fds)
        assert list(right.arrived(until_empty=True)) == []
        left.send(MoreDescriptors(), fds=fds)
        refuse(right, "600 fds came ahead of their message")
        assert open_count() == before - 1


def test_descriptors_that_this_process_has_no_room_for_are_told_and_not_leaked():
    with channels() as (left, right), pipe_ends(20) as fds:
        left.send(Ping(), fds=fds)
        before = open_count()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 10, hard))
        try:
            with pytest.raises(InvalidRequest, match="descriptors were lost on the way"):
                right.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        right.close()
        assert open_count() == before - 1


@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\n\r\n", b"\x02" * 8, bytes(100)])
def test_another_protocol_is_refused_at_its_first_bytes(stream):
    with channels(blocking=False) as (left, right):
        raw(left.socket, stream)
        refuse(right, "wire version")


def test_what_came_before_the_broken_part_is_still_delivered():
    with channels(blocking=False) as (left, right):
        left.send(Released(1))
        raw(left.socket, b"nonsense")
        stream = right.arrived()
        assert next(stream, None) is not None
        with pytest.raises(InvalidRequest):
            next(stream)


def test_what_a_channel_looks_like():
    with channels(blocking=False, small=True) as (left, right):
        assert repr(left) == f"<Channel fd={left.fileno()} open, 0 unsent>"
        left.send(Ping(), [bytes(500_000)])
        assert repr(left) == f"<Channel fd={left.fileno()} open, 1 unsent>"
        left.close()
        list(right.arrived(until_empty=True))
        assert repr(right) == f"<Channel fd={right.fileno()} at end, 0 unsent>"


# --- a reader that does not keep up --------------------------------------------------------------------------


def test_how_much_waits_is_counted_until_it_is_written():
    with channels(blocking=False, small=True) as (left, right):
        for number in range(100):
            left.send_soon(Done("x" * 1000 + str(number)))
        left.flush()
        left.send(Released(1), [bytes(100_000)])
        assert left.unsent_messages == len(left._unsent) + 99  # what was to be sent soon waits together
        assert 100_000 < left.unsent_bytes < 220_000
        while left.has_unsent:
            left.flush()
            list(right.arrived())
        assert (left.unsent_messages, left.unsent_bytes) == (0, 0)


def test_what_is_sent_soon_is_sent_at_once_when_it_has_become_much():
    with channels() as (left, right):
        sender = threading.Thread(target=lambda: [left.send_soon(Done("x" * 100_000)) for _ in range(4)])
        sender.start()
        assert [one.message for one in received(right, 3)] == [Done("x" * 100_000)] * 3
        sender.join()
        left.flush()
        assert right.receive().message == Done("x" * 100_000)


def test_what_has_not_begun_to_be_sent_can_be_dropped_with_its_descriptors():
    with channels(blocking=False, small=True) as (left, right), pipe_ends(2) as fds:
        before = open_count()
        left.send(Released(1), [bytes(500_000)])
        left.send(Released(2), [bytes(500_000)], fds)
        left.send_soon(Released(3))
        left.drop_unsent()
        left.send(Released(4))
        assert open_count() == before
        assert left.unsent_messages == 2
        arrived = []
        while left.has_unsent or len(arrived) < 2:
            left.flush()
            arrived += [one.message for one in right.arrived()]
        assert arrived == [Released(1), Released(4)]


def test_where_no_descriptors_may_come_they_are_not_even_opened():
    with channels(blocking=False) as (left, right), pipe_ends(2) as fds:
        right.takes_fds = False
        before = open_count()
        raw(left.socket, message_of(0), fds)
        left.send(Released(1))
        assert [one.message for one in right.arrived(until_empty=True)] == [Ping(), Released(1)]
        assert open_count() == before
        raw(left.socket, message_of(2), fds)
        refuse(right, "Ping came with 0 fds instead of 2")


def test_that_something_was_read_and_not_yielded_is_known():
    with channels(blocking=False) as (left, right):
        for number in range(3):
            left.send(Released(number))
        assert not right.has_arrived
        assert next(right.arrived()).message == Released(0)
        assert right.has_arrived
        assert [one.message for one in right.arrived()] == [Released(1), Released(2)]
        assert not right.has_arrived


def test_a_closed_channel_keeps_no_memory_to_read_into():
    ours, theirs = map(Channel, socket.socketpair())
    theirs.send(Done("x" * 100_000))
    assert next(ours.arrived()).message == Done("x" * 100_000)
    memory = weakref.ref(ours._decoder._scratch.obj)
    theirs.close()
    ours.close()
    ours.close()
    assert memory() is None  # whoever still refers to the channel
    with pytest.raises(OSError, match="Bad file descriptor"):
        next(ours.arrived())
