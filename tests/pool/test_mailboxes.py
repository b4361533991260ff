"""Large arrays through mailboxes, with real processes: equal, kept, given back, and never in two hands at once."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading

import mailbox_models
import msgpack
import numpy as np
import pytest
import torch
import zmq
from leftovers import wait_until
from onecopy.pool import ConfigError, DeadlineExceeded, Model, Pool, SupervisorLost, mailbox
from onecopy.pool.checks import read_size
from onecopy.pool.futures import PoolFuture
from onecopy.pool.mailbox import FIRST_BYTES
from onecopy.pool.settings import Settings
from onecopy.protocol.messages import Submit
from onecopy.protocol.tensors import TORCH_NAMES
from onecopy.protocol.values import encode
from standalone import standalone

TOML = 'workers = 2\n[models.arrays]\nsource = "mailbox_models:Arrays"\n'
LARGE = 50_000  # elements of float32: 200 kB


@pytest.fixture
def pool():
    with Pool({"arrays": mailbox_models.Arrays()}, workers=2) as pool:
        yield pool


@pytest.fixture
def soon(monkeypatch):
    """Let mailboxes be given back soon."""
    monkeypatch.setattr(mailbox, "IDLE_S", 0.05)


def method(pool, name, **options):
    return pool.model("arrays", method=name, **options)


def granted_bytes(pool):
    return pool.status().mailboxes.granted_bytes


def taken_bytes(pool):
    """What of a client's mailboxes is in anybody's hands."""
    boxes = pool._connection._parcels.mailboxes
    boxes._take_back()
    return sum(one.blocks.size_bytes - one.blocks.free_bytes for one in boxes._held)


def numbers(pool):
    return {one.number for one in pool._connection._parcels.mailboxes._held}


def lies_in_a_mailbox(pool, tensor):
    start = tensor.data_ptr()
    boxes = pool._connection._parcels.mailboxes._held
    return any(one.address <= start < one.address + len(one.mapping) for one in boxes)


# --- values --------------------------------------------------------------------------------------------------

SHAPES = {
    "transposed": torch.randn(300, 200).T,
    "strided": torch.randn(300, 400)[:, ::2],
    "expanded": torch.randn(1, 1, 80_000).expand(3, 2, 80_000),
    "empty": torch.empty(0, 10**6),
    "conjugated": torch.randn(100, 200).to(torch.complex64).conj(),
    "just large": torch.randn(4097),
    "scalar": torch.tensor(1.5),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_comes_back_equal(pool):
    for name in TORCH_NAMES.values():
        dtype = getattr(torch, name)
        x = torch.randint(0, 2, (300, 200)).to(dtype)
        for _ in range(2):
            back = pool.run("arrays", x)
            assert back.dtype == dtype
            assert back.view(torch.uint8).equal(x.view(torch.uint8)), name
    assert pool.status().mailboxes.inline == 0


def test_every_shape_comes_back_equal(pool):
    for name, x in SHAPES.items():
        for _ in range(2):
            assert pool.run("arrays", x).equal(x), name


def test_numpy_arrays_read_only_ones_too(pool):
    x = np.arange(100_000.0)
    x.flags.writeable = False
    for _ in range(2):
        back = pool.run("arrays", x)
        assert (back == x).all()
        back += 1


def test_many_arrays_of_many_sizes_keep_their_places(pool):
    values = {"small": torch.ones(3), "large": [torch.full((LARGE + one,), float(one)) for one in range(5)]}
    for _ in range(3):
        back = pool.run("arrays", values)
        assert back["small"].equal(values["small"])
        assert all(one.equal(other) for one, other in zip(back["large"], values["large"], strict=True))


def test_results_lie_in_the_mailbox_from_the_second_on_and_can_be_written(pool):
    make = method(pool, "make")
    first, second = make(LARGE, 1.0), make(LARGE, 2.0)
    assert not lies_in_a_mailbox(pool, first)
    assert lies_in_a_mailbox(pool, second)
    second += 1
    assert second.equal(torch.full((LARGE,), 3.0))
    larger = make(2 * LARGE, 4.0)
    assert not lies_in_a_mailbox(pool, larger)
    assert lies_in_a_mailbox(pool, make(2 * LARGE, 5.0))
    assert larger.equal(torch.full((2 * LARGE,), 4.0))


def test_each_array_of_a_result_gives_its_memory_back_alone(pool):
    values = [torch.ones(LARGE), torch.ones(3 * LARGE)]
    pool.run("arrays", values)
    one, other = pool.run("arrays", values)
    assert taken_bytes(pool) == 4 * 4 * LARGE
    del other
    assert taken_bytes(pool) == 4 * LARGE
    view = one[10:]
    del one
    assert taken_bytes(pool) == 4 * LARGE
    del view
    assert taken_bytes(pool) == 0


def test_kept_results_fill_the_mailbox_and_later_ones_are_correct_all_the_same():
    with Pool({"arrays": mailbox_models.Arrays()}, workers=1, mailbox="1MiB") as pool:
        kept = [method(pool, "make")(LARGE, float(one)) for one in range(20)]
        assert sum(lies_in_a_mailbox(pool, one) for one in kept) == 5
        assert [float(one[-1]) for one in kept] == [float(one) for one in range(20)]
        assert granted_bytes(pool) <= 1 << 20
        status = pool.status()
        assert status.mailboxes.refused > 0
        assert any("may have 1,048,576" in text for text in status.fallbacks)
        assert sum("travel with their messages" in text for text in status.notes) == 1
        kept.clear()
        assert taken_bytes(pool) == 0


def test_a_model_may_write_and_keep_its_inputs(pool):
    x = torch.ones(LARGE)
    assert method(pool, "overwrite")(x) == LARGE
    assert x.sum() == LARGE
    with Pool({"arrays": mailbox_models.Arrays()}, workers=1) as alone:
        for fill in range(1, 5):
            method(alone, "keep")(torch.full((LARGE,), float(fill)))
        assert method(alone, "sums_of_kept")() == [float(fill * LARGE) for fill in range(1, 5)]


def test_many_threads_at_once_get_each_their_own(pool):
    wrong = []

    def work(index):
        for turn in range(15):
            fill = float(100 * index + turn)
            x = torch.full((LARGE + 1000 * index,), fill)
            back = method(pool, "add")(x, x)
            if not back.equal(2 * x):
                wrong.append(fill)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert wait_until(lambda: taken_bytes(pool) == 0)


def test_results_stay_valid_after_the_pool_is_gone(pool):
    make = method(pool, "make")
    make(LARGE, 1.0)
    kept = make(LARGE, 7.0)
    assert lies_in_a_mailbox(pool, kept)
    pool.shutdown()
    gc.collect()
    kept += 1
    assert kept.equal(torch.full((LARGE,), 8.0))


# --- cancelling, deadlines, deaths ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_late_write_lands_in_nobody_elses_memory(tmp_path, how):
    begun, until = str(tmp_path / "begun"), str(tmp_path / "until")
    with Pool({"arrays": mailbox_models.Arrays()}, workers=2, slots=2, mailbox="8MiB") as pool:
        method(pool, "make_late")(LARGE, 0.5, str(tmp_path / "other"), str(tmp_path))  # so that its size is known
        handle = method(pool, "make_late", timeout_s=0.2 if how == "deadline" else None)
        late = handle.submit(LARGE, -1.0, begun, until)
        assert wait_until(lambda: os.path.exists(begun) or late.done())
        if how == "cancel":
            assert late.cancel()
        else:
            with pytest.raises(DeadlineExceeded):
                late.result()
        assert taken_bytes(pool) == 4 * LARGE
        make = method(pool, "make")
        kept = [make(LARGE, float(fill)) for fill in range(30)]  # takes all the memory that there is
        os.close(os.open(until, os.O_CREAT))
        assert wait_until(lambda: pool.status().unanswered == 0 and not pool._connection._parcels)
        assert [float(one.min()) for one in kept] == [float(one.max()) for one in kept] == list(range(30))
        kept.clear()
        assert taken_bytes(pool) == 0


def test_what_a_cancelled_request_sent_is_read_by_its_worker_alone(pool, tmp_path):
    """It waits behind another; its memory is the client's again at once."""
    begun, until = str(tmp_path / "begun"), str(tmp_path / "until")
    blocking = [method(pool, "make_late").submit(10, 1.0, f"{begun}{one}", until) for one in range(2)]
    waiting = pool.submit("arrays", torch.ones(LARGE))
    assert taken_bytes(pool) == 4 * LARGE
    waiting.cancel()
    assert wait_until(lambda: taken_bytes(pool) == 0)
    os.close(os.open(until, os.O_CREAT))
    assert [float(one.result()[0]) for one in blocking] == [1.0, 1.0]


def test_a_retry_after_a_death_sees_what_was_sent(pool, tmp_path):
    x = torch.full((LARGE,), 3.0)
    assert method(pool, "sum_or_die")(x, str(tmp_path / "died")) == 3.0 * LARGE
    assert pool.status().retried == 1
    assert wait_until(lambda: taken_bytes(pool) == 0)


def test_workers_that_are_killed_while_they_read_and_write_change_nothing(pool):
    """Kills at many moments, most of them in the midst of a copy: every result is whole."""
    x = torch.arange(4_000_000.0)
    handle = pool.model("arrays", retries=1)
    handle(x)
    for turn in range(12):
        future = handle.submit(x + turn)
        threading.Event().wait(turn / 1000)  # where that ends in a run does not matter
        for worker in pool.status().workers:
            if worker.outstanding:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        assert future.result().equal(x + turn)
    del future
    assert taken_bytes(pool) == 0


def test_a_models_own_child_does_not_hold_the_mailbox(pool):
    x = torch.ones(LARGE)
    double = method(pool, "fork_and_return")
    assert double(x).equal(2 * x)
    assert double(x).equal(2 * x)


# --- who gives back, and when --------------------------------------------------------------------------------


def test_an_idle_mailbox_is_given_back_and_another_asked_for_when_needed(soon, pool):
    x = torch.ones(LARGE)
    pool.run("arrays", x)
    kept = pool.run("arrays", x)
    assert granted_bytes(pool) == FIRST_BYTES
    assert pool.memory().mailboxes_bytes > 0
    del kept
    assert wait_until(lambda: granted_bytes(pool) == 0)
    assert wait_until(lambda: not [one for one in threading.enumerate() if one.name == "onecopy-mailboxes"])
    assert pool.memory().mailboxes_bytes == 0
    assert pool.run("arrays", x).equal(x)


def test_a_kept_result_keeps_its_mailbox(soon, pool):
    x = torch.ones(LARGE)
    pool.run("arrays", x)
    kept = pool.run("arrays", x)
    assert not wait_until(lambda: granted_bytes(pool) == 0, timeout_s=0.5)
    assert kept.equal(x)


CLIENTS = """
    import sys, torch
    from onecopy.pool import Pool

    pools = [Pool.connect(sys.argv[1]) for _ in range(25)]
    for pool in pools:
        x = torch.randn(1_000_000)
        assert pool.run("arrays", x).equal(x)
    print("sent", flush=True)
    sys.stdin.read()
    for pool in pools:
        pool.shutdown()
"""


def test_a_hundred_idle_clients_keep_nothing(tmp_path):
    toml = 'mailbox_total = "200MiB"\n' + TOML
    program = textwrap.dedent(CLIENTS)
    with standalone(tmp_path, toml) as served, Pool.connect(served.endpoint) as pool:
        command = [sys.executable, "-c", program, served.endpoint]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
        assert [process.stdout.readline() for process in processes] == [b"sent\n"] * 4
        assert pool.status().clients == 101
        assert granted_bytes(pool) <= 200 << 20
        assert wait_until(lambda: granted_bytes(pool) == 0)
        assert pool.memory().mailboxes_bytes == 0
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0


def test_a_client_that_is_killed_gives_everything_back(tmp_path):
    program = """
        import sys, torch
        from onecopy.pool import Pool

        pool = Pool.connect(sys.argv[1])
        x = torch.ones(1_000_000)
        kept = [pool.run("arrays", x) for _ in range(3)]
        late = pool.model("arrays", method="make_late").submit(1_000_000, 1.0, sys.argv[2], sys.argv[3])
        waiting = [pool.submit("arrays", x) for _ in range(20)]
        print("ready", flush=True)
        sys.stdin.read()
    """
    begun, until = tmp_path / "begun", tmp_path / "until"
    with standalone(tmp_path, TOML) as served, Pool.connect(served.endpoint) as pool:
        command = [sys.executable, "-c", textwrap.dedent(program), served.endpoint, str(begun), str(until)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:
            assert process.stdout.readline() == b"ready\n"
            assert wait_until(begun.exists)
            assert granted_bytes(pool) > 0
            process.kill()
        assert wait_until(lambda: pool.status().clients == 1)
        until.touch()
        assert wait_until(lambda: granted_bytes(pool) == 0)
        assert pool.memory().mailboxes_bytes == 0
        assert pool.run("arrays", torch.ones(LARGE)).sum() == LARGE


# --- budgets -------------------------------------------------------------------------------------------------


def test_without_mailboxes_everything_travels_inline():
    with Pool({"arrays": mailbox_models.Arrays()}, workers=1, mailbox=0) as pool:
        x = torch.randn(LARGE)
        assert all(pool.run("arrays", x).equal(x) for _ in range(3))
        status = pool.status()
        assert (status.mailboxes.granted_bytes, status.mailboxes.inline) == (0, 3)
        assert not status.notes


def test_what_is_larger_than_the_budget_travels_inline_and_is_told():
    with Pool({"arrays": mailbox_models.Arrays()}, workers=1, mailbox="256KiB") as pool:
        x = torch.randn(100_000)
        assert all(pool.run("arrays", x).equal(x) for _ in range(3))
        assert pool.status().mailboxes.inline == 3
        assert "may have 262,144" in str(pool.status())


def test_memory_that_all_have_used_up_is_refused_to_the_next(tmp_path):
    toml = f"mailbox_total = {FIRST_BYTES}\n" + TOML
    with (
        standalone(tmp_path, toml) as served,
        Pool.connect(served.endpoint) as one,
        Pool.connect(served.endpoint) as other,
    ):
        x = torch.randn(LARGE)
        one.run("arrays", x)
        kept = one.run("arrays", x)
        assert other.run("arrays", x).equal(x)
        assert f"all clients have {FIRST_BYTES:,}, and may have {FIRST_BYTES:,}" in other.status().fallbacks[-1]
        assert kept.equal(x)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0, 0), (4096, 4096), ("0", 0), ("12", 12), ("1kB", 1000), ("1.5 GiB", 3 << 29), ("2MiB", 2 << 20),
        ("3M", 3 * 10**6),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(written, expected):
    assert read_size("mailbox", written) == expected


@pytest.mark.parametrize("written", [-1, 1.5, True, None, "", "many", "-1", "1XB", "1e3", "MiB"])
def test_what_is_no_size_is_refused(written):
    with pytest.raises(ConfigError, match=r"mailbox must be a number of bytes from 0, or a text such as '256MiB'"):
        read_size("mailbox", written)


def test_a_pool_toml_names_the_budgets(tmp_path):
    toml = 'mailbox = "1MiB"\nmailbox_total = "2MiB"\n' + TOML
    with standalone(tmp_path, toml) as served, Pool.connect(served.endpoint) as pool:
        assert pool.status().mailboxes.total_bytes == 2 << 20


def test_all_together_may_have_an_eighth_of_the_machine_by_default():
    settings = Settings()
    assert settings.mailbox_bytes == 256 << 20
    assert settings.mailbox_total_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


# --- others at the sockets -----------------------------------------------------------------------------------


class RawClient:
    """What a client in another language does: sockets, msgpack, and nothing of this package."""

    def __init__(self, folder):
        self.control = socket.socket(socket.AF_UNIX)
        self.control.connect(f"{folder}/control")
        self.tell(22)
        (_, _, token, endpoint, _), _ = self.answer()
        self.context = zmq.Context()
        self.requests = self.context.socket(zmq.DEALER)
        self.requests.connect(endpoint)
        self.requests.send(msgpack.packb([1, 1, token, os.getpid()]))
        self.requests.recv()

    def tell(self, *message):
        header = msgpack.packb([1, *message])
        self.control.sendall(struct.pack("<BBHI", 1, 0, 0, len(header)) + header)

    def answer(self):
        data, fds, _, _ = socket.recv_fds(self.control, 65536, 1)
        return msgpack.unpackb(data[8:]), fds

    def submit(self, request, model, method, body, places, reply):
        fields = [request, model, method, 0.0, 1, 0, "", 0, 0, body, places, reply]
        self.requests.send(msgpack.packb([1, 4, *fields]))

    def receive(self):
        assert self.requests.poll(20_000)
        return msgpack.unpackb(self.requests.recv_multipart()[0])

    def close(self):
        self.requests.close(0)
        self.context.term()
        self.control.close()


@pytest.fixture
def raw(pool):
    client = RawClient(pool._connection.directory)
    yield client
    client.close()


def test_a_client_in_another_language_uses_a_mailbox(raw):
    raw.tell(50, 100_000)
    (_, number, mailbox, size_bytes), [fd] = raw.answer()
    assert (number, size_bytes) == (51, 102_400)
    os.pwrite(fd, b"\1" * 20_000, 64)
    body, _ = encode([[torch.ones(20_000, dtype=torch.uint8)], {}])
    raw.submit(1, "arrays", "", body, [[mailbox, 64, 20_000]], [mailbox, 51_200, 51_200])
    assert raw.receive()[:3] == [1, 7, 1]
    assert os.pread(fd, 20_000, 51_200) == b"\1" * 20_000
    raw.tell(52, mailbox)
    raw.tell(50, 4096)  # once that is answered, what was said there before is done
    os.close(raw.answer()[1][0])
    raw.submit(2, "arrays", "", body, [[mailbox, 64, 20_000]], [])
    _, number, _, error = raw.receive()
    assert (number, error["code"]) == (8, "invalid_request")
    assert raw.receive() == [1, 12, 2]
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    os.close(fd)


def test_places_that_are_forged_are_refused_and_harm_nobody(pool, raw):
    x = torch.randn(LARGE)
    pool.run("arrays", x)
    kept = pool.run("arrays", x)
    [theirs] = numbers(pool)
    raw.tell(50, 4096)
    (_, _, mine, _), [fd] = raw.answer()
    os.close(fd)
    body, _ = encode([[torch.ones(LARGE)], {}])
    forged = [
        [theirs, 0, 4 * LARGE], [mine, 0, 4097], [mine, 4096, 64], [mine, -64, 64], [mine, 1, 64],
        [mine, 0, -1], [mine, (1 << 64) - 64, 128], [mine + 1000, 0, 64], [mine, 0], ["x", 0, 1], [None] * 3, 5,
    ]  # fmt: skip
    for number, place in enumerate(forged, 1):
        raw.submit(number, "arrays", "", body, [place], [])
        _, kind, request, error = raw.receive()
        assert (kind, request, error["code"]) == (8, number, "invalid_request"), place
        assert raw.receive() == [1, 12, number]
    raw.submit(99, "arrays", "make", msgpack.packb([[LARGE, 0.0], {}]), [], [theirs, 0, 4 * LARGE])
    assert raw.receive()[3]["code"] == "invalid_request"
    assert raw.receive() == [1, 12, 99]
    assert kept.equal(x)


def test_too_few_places_for_what_the_body_names_are_refused_by_the_worker(raw):
    raw.tell(50, 4096)
    (_, _, mine, _), [fd] = raw.answer()
    os.close(fd)
    body, _ = encode([[torch.ones(LARGE), torch.ones(LARGE)], {}])
    raw.submit(1, "arrays", "", body, [[mine, 0, 4096]], [])
    _, number, _, error = raw.receive()
    assert (number, error["code"]) == (8, "invalid_request")
    assert raw.receive() == [1, 12, 1]


def test_a_client_over_tcp_travels_inline_and_has_no_places(tmp_path):
    with standalone(tmp_path, 'listen = ["tcp://127.0.0.1:*"]\n' + TOML) as served:
        assert wait_until(lambda: "listening at" in served.log.read_text())
        endpoint = served.log.read_text().split("listening at ")[1].split()[0]
        with Pool.connect(endpoint) as pool:
            x = torch.randn(LARGE)
            assert all(pool.run("arrays", x).equal(x) for _ in range(3))
            assert pool.status().mailboxes.inline == 0
            future = PoolFuture(pool._connection, ("arrays", ""))
            body, _ = encode([[x], {}])
            pool._connection._expected[10**6] = future
            forged = Submit(10**6, "arrays", "", 0.0, 1, 0, "", 0, 0, body, [[1, 0, 4 * LARGE]], [])
            pool._connection._send(forged, ())
            assert "mailbox 1 is not yours" in str(future.exception())


# --- forks ---------------------------------------------------------------------------------------------------


def test_a_forked_child_keeps_what_it_had_and_uses_nothing_of_it(soon, pool):
    x = torch.full((LARGE,), 5.0)
    pool.run("arrays", x)
    kept = pool.run("arrays", x)
    go_on, may_go_on = multiprocessing.Pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            may_go_on.recv()
            is_kept = bool((kept.numpy() == 5.0).all())  # by NumPy: torch's threads do not survive a fork
            code = 0 if is_kept and len(threading.enumerate()) == 1 else 2
        finally:
            os._exit(code)
    may_go_on.close()
    before = numbers(pool)
    del kept
    for fill in range(40):
        pool.run("arrays", torch.full((LARGE,), float(fill)))
    assert wait_until(lambda: not before & numbers(pool))  # nothing was put where the child reads
    go_on.send("go on")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.close()
    assert pool.run("arrays", x).equal(x)


def test_whoever_asks_a_supervisor_for_memory_that_dies_is_told(tmp_path):
    with standalone(tmp_path, TOML) as served, Pool.connect(served.endpoint) as pool:
        pool.run("arrays", 1)
        told = []

        def send():
            try:
                pool.submit("arrays", torch.ones(LARGE))
            except SupervisorLost as error:
                told.append(error)

        served.process.send_signal(signal.SIGSTOP)
        sender = threading.Thread(target=send)
        sender.start()
        assert wait_until(pool._connection._parcels.mailboxes._lock.locked)
        served.process.kill()
        sender.join()
        assert "is gone" in str(told[0])


def test_models_that_are_unloaded_leave_nothing_in_mailboxes(pool):
    pool.load("other", Model(mailbox_models.Arrays()))
    x = torch.ones(LARGE)
    assert pool.run("other", x).equal(x)
    pool.unload("other")
    assert taken_bytes(pool) == 0
