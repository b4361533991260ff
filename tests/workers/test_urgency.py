"""Priorities on a GPU: a stream follows them where processes compute at the same time, and else there is none."""

from __future__ import annotations

import cuda_driver
import pytest
import torch
from onecopy.protocol import cuda, cuda_streams
from onecopy.protocol.cuda_streams import PriorityStream, computes_beside_others
from onecopy.protocol.gpu import begin
from onecopy.workers.urgency import Urgency


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    cuda_driver.load(tmp_path_factory.mktemp("driver"))
    return begin(0)


@pytest.fixture
def beside_others(gpu, monkeypatch):
    """Workers compute at the same time."""
    monkeypatch.setattr("onecopy.workers.urgency.computes_beside_others", lambda _: True)
    yield
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.default_stream())


def level_of(stream):
    return cuda.call("cuStreamGetPriority", stream.handle)


def test_a_stream_has_one_of_three_levels(gpu):
    stream = PriorityStream(0)
    least, greatest = cuda.call("cuCtxGetStreamPriorityRange")
    levels = []
    for priority in (0, 1, 100, 0, -1, -100, 3):
        stream.follow(priority)
        levels.append(level_of(stream))
    middle = (least + greatest) // 2
    assert levels == [middle, greatest, greatest, middle, least, least, greatest]
    assert greatest < middle < least


def test_the_driver_is_told_of_changes_only(gpu, monkeypatch):
    stream = PriorityStream(0)
    told = []
    monkeypatch.setattr(cuda_streams, "call", lambda name, *_: told.append(name))
    for priority in (0, 0, 5, 7, -1, -1):
        stream.follow(priority)
    assert told == ["cuStreamSetAttribute"] * 2


def test_a_worker_follows_what_it_is_told(gpu, beside_others):
    urgency = Urgency(gpu)
    urgency.follow(7)
    assert level_of(urgency._stream) < 0
    urgency.follow(-7)
    assert level_of(urgency._stream) == 0


def test_where_processes_take_turns_there_is_none(gpu, monkeypatch):
    monkeypatch.setattr("onecopy.workers.urgency.computes_beside_others", lambda _: False)
    for urgency in (Urgency(gpu), Urgency(None)):
        urgency.follow(7)
        assert urgency._stream is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in goes by the environment alone")
def test_whether_they_do_is_asked_of_the_driver(gpu, monkeypatch):
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    assert not computes_beside_others(0)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/nowhere")
    assert computes_beside_others(0)


class Result(int):
    name = "CUDA_ERROR_INVALID_VALUE"


@pytest.mark.parametrize(
    "error", [AttributeError("MPS_ENABLED"), cuda.CudaError("cuDeviceGetAttribute", Result(1))]
)
def test_a_driver_or_a_binding_that_does_not_know_says_no(gpu, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(cuda_streams, "attribute", fail)
    assert not computes_beside_others(0)


def test_another_refusal_is_said(gpu, monkeypatch, capfd):
    def fail(*_):
        raise cuda.CudaError("the driver is gone")

    monkeypatch.setattr(cuda_streams, "attribute", fail)
    Urgency(gpu).follow(1)
    assert "no call goes before others, whatever its priority: the driver is gone" in capfd.readouterr().err


def test_a_stream_that_does_not_follow_is_said_once_and_left_as_it_is(gpu, beside_others, monkeypatch, capfd):
    urgency = Urgency(gpu)

    def fail(name, *_):
        raise cuda.CudaError(name)

    monkeypatch.setattr(cuda_streams, "call", fail)
    for _ in range(3):
        urgency.follow(1)
    assert capfd.readouterr().err.count("no call goes before others") == 1
