"""A worker that lost its GPU tells of it and is replaced; the loss is made up, as there is no GPU here to lose."""

import pytest
import torch
from losing_models import Loses
from onecopy.pool import Model, ModelError, Pool


@pytest.fixture
def pool():
    models = {
        "losing": Loses(),
        "batch": Model(Loses(), max_batch=8, max_wait_ms=100),
        "good": torch.nn.Identity(),
    }
    with Pool(models, workers=2) as pool:
        yield pool


def test_each_request_is_told_once_and_other_models_go_on(pool):
    futures = [pool.submit("losing", number) for number in range(3)]
    others = [pool.submit("good", number) for number in range(20)]
    for future in futures:
        with pytest.raises(ModelError, match=r"losing: AcceleratorError: .* cannot use its GPU any more"):
            future.result()
    assert [future.result() for future in others] == list(range(20))
    assert pool.status().retried == 0


def test_requests_of_a_batch_are_told_one_by_one(pool):
    futures = [pool.submit("batch", number) for number in range(4)]
    for future in futures:
        with pytest.raises(ModelError, match=r"batch: AcceleratorError: .* cannot use its GPU any more"):
            future.result()
    assert pool.run("good", "still here") == "still here"
