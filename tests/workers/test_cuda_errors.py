"""A worker that lost its GPU tells so, once, and ends; errors are made up, as there is no GPU to lose here."""

from __future__ import annotations

import os

import pytest
import torch
from driven import Worker, call, pack
from losing_models import Loses
from onecopy.protocol.errors import LoadFailed, ModelError, from_record
from onecopy.protocol.messages import Exited
from onecopy.workers.cuda_errors import EXIT_CODE, LOST, ContextLost, last_words, lost_by
from onecopy.workers.interrupts import Interrupted

ILLEGAL_ADDRESS = 700
OUT_OF_MEMORY = 2


def cuda_error(
    code, text="CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be late"
):
    """What torch raises when the driver tells it of an error."""
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


def raised(error, *, by=None, during=None):
    """Return an error as it is once it was raised, by another or while that was handled."""
    try:
        try:
            if during is not None:
                raise during
        except BaseException:
            raise error from by
        raise error from by
    except BaseException as caught:
        return caught


# --- which errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", LOST)
def test_an_error_after_which_a_process_must_end_is_known(code):
    error = cuda_error(code)
    assert lost_by(error) is error


@pytest.mark.parametrize(
    "error",
    [
        cuda_error(OUT_OF_MEMORY), torch.AcceleratorError("CUDA error"), torch.OutOfMemoryError("CUDA out of"),
        RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError(), Interrupted(),
    ],
    ids=lambda error: f"{type(error).__name__}",
)  # fmt: skip
def test_other_errors_are_a_models_own(error):
    assert lost_by(error) is None
    assert lost_by(raised(KeyError("x"), during=error)) is None


def test_of_errors_that_followed_from_one_another_the_first_counts():
    first, later = cuda_error(ILLEGAL_ADDRESS), cuda_error(719)
    assert lost_by(raised(later, during=first)) is first
    assert lost_by(raised(LoadFailed("thaw"), by=raised(later, during=first))) is first
    assert lost_by(raised(first, during=KeyError("x"))) is first


def test_what_waiting_for_the_gpu_raised_counts_whatever_its_number():
    unknown = cuda_error(999)
    assert lost_by(raised(ContextLost(), by=unknown)) is unknown
    assert lost_by(raised(cuda_error(ILLEGAL_ADDRESS), during=raised(ContextLost(), by=unknown))) is unknown
    assert isinstance(lost_by(ContextLost()), ContextLost)


def test_the_last_words_name_the_model_the_reason_and_the_process():
    error = from_record(last_words(cuda_error(ILLEGAL_ADDRESS), "m"))
    assert isinstance(error, ModelError)
    assert error.message == (
        "m: AcceleratorError: CUDA error: an illegal memory access was encountered: a kernel wrote into a weight, "
        "which is read-only on a GPU, or reached outside of its tensors; the worker, process "
        f"{os.getpid()}, cannot use its GPU any more and is replaced"
    )
    assert "the GPU does not say why" in last_words(cuda_error(999), "m")["message"]


# --- a worker of its own ---------------------------------------------------------------------------------------


@pytest.fixture
def losing(zygote, tmp_path):
    worker = Worker(zygote, tmp_path / "output")
    yield worker
    worker.channel.close()
    os.close(worker.pidfd)


@pytest.mark.parametrize("part", [call(1), pack([1, 2])], ids=["one", "many"])
def test_a_single_request_is_answered_before_the_worker_ends(zygote, losing, part):
    attempt = losing.order(losing.hold(Loses()), "__call__", part)
    losing.order(1, "__call__", call(2))  # handed ahead: it goes back to its queue
    (error,) = losing.ended(attempt)
    assert isinstance(error, ModelError)
    assert f"process {losing.pid}, cannot use its GPU any more" in error.message
    assert losing.channel.receive() is None
    assert os.waitstatus_to_exitcode(zygote.expect(Exited).message.status) == EXIT_CODE
    assert losing.marks.begun == 0, "nothing is to be blamed that was answered"
    assert "a kernel wrote into a weight" in losing.output.read_text()


def test_of_several_requests_none_is_answered_so_that_each_is_run_alone(zygote, losing):
    attempt = losing.order(losing.hold(Loses(), max_batch=8), "__call__", call(1), call(2))
    assert losing.channel.receive() is None
    assert os.waitstatus_to_exitcode(zygote.expect(Exited).message.status) == EXIT_CODE
    assert losing.marks.begun == attempt
