"""Batches, end to end: workers make calls of several callers as one, and no caller can tell."""

from __future__ import annotations

import threading

import batch_models
import pool_models
import pytest
import torch
from leftovers import wait_until
from module_pool import shared_pool
from onecopy.pool import Model, ModelError, Pool, WorkerDied


@pytest.fixture(scope="module")
def batching_pool(tmp_path_factory):
    """Two workers, and models that batch in several ways."""
    models = {
        "plain": Model(batch_models.Batched(), max_batch=16, max_wait_ms=5),
        "hooked": Model(batch_models.Batched(), max_batch=16, collate="padded", split="unpadded"),
        "wrong": Model(batch_models.Batched(), max_batch=16, collate="no_call"),
        "trouble": pool_models.Trouble(),
    }
    with shared_pool(tmp_path_factory, models, workers=2) as pool:
        assert wait_until(lambda: [one.pid > 0 for one in pool.status().workers] == [True] * 2)
        yield pool


def busy(pool, tmp_path):
    """Let every worker wait for a file, so that what is submitted meanwhile can be batched; return that file."""
    path = tmp_path / "go"
    wait = pool.model("trouble", method="wait_for")
    futures = [wait.submit(str(path), str(tmp_path / f"begun {number}")) for number in range(2)]
    assert wait_until(lambda: all((tmp_path / f"begun {number}").exists() for number in range(2)))
    return path, futures


def let_go(pool, path, futures):
    """Let the workers go on, once everything that was submitted waits for them."""
    assert wait_until(lambda: pool.status().unanswered == len(futures) + 2)
    path.touch()


def calls_of(pool, name):
    """What each worker's model was called with since that was asked; forgotten then."""
    seen = pool.model(name, method="seen")
    return [rows for future in [seen.submit() for _ in range(20)] for rows in future.result()]


def test_what_waits_is_made_as_one_call_and_everybody_gets_his_part(batching_pool, tmp_path):
    calls_of(batching_pool, "plain")
    path, waiting = busy(batching_pool, tmp_path)
    inputs = [torch.randn(1 + number % 3, 5) for number in range(64)]
    futures = [batching_pool.submit("plain", x) for x in inputs]
    let_go(batching_pool, path, futures)
    assert all(torch.equal(future.result(), x * 2) for future, x in zip(futures, inputs, strict=True))
    assert len({future.result() for future in waiting}) == 2
    rows = calls_of(batching_pool, "plain")
    assert sum(rows) == sum(len(x) for x in inputs)
    assert len(rows) < 16


def test_large_tensors_come_from_mailboxes_and_go_back_there(batching_pool, tmp_path):
    inputs = [torch.full((2, 50_000), float(number)) for number in range(24)]
    batching_pool.run("plain", inputs[0])  # from now on it is known how large results are
    path, _ = busy(batching_pool, tmp_path)
    futures = [batching_pool.submit("plain", x) for x in inputs]
    let_go(batching_pool, path, futures)
    assert all(torch.equal(future.result(), x * 2) for future, x in zip(futures, inputs, strict=True))


def test_only_the_call_fails_that_fails_alone(batching_pool, tmp_path):
    picky = batching_pool.model("plain", method="picky")
    path, _ = busy(batching_pool, tmp_path)
    futures = [picky.submit(torch.full((1, 4), -1.0 if number == 7 else float(number))) for number in range(20)]
    let_go(batching_pool, path, futures)
    for number, future in enumerate(futures):
        if number == 7:
            with pytest.raises(ModelError, match=r"plain: ValueError: negative: -1.0"):
                future.result()
        else:
            assert torch.equal(future.result(), torch.full((1, 4), 2.0 * number))


def test_of_a_batch_that_kills_its_worker_only_the_one_fails_that_does(tmp_path):
    models = {"plain": Model(batch_models.Batched(), max_batch=16), "trouble": pool_models.Trouble()}
    with Pool(models, workers=2, slots=2) as pool:
        deadly = pool.model("plain", method="deadly", retries=1)
        path, _ = busy(pool, tmp_path)
        futures = [
            deadly.submit(torch.full((1, 2), -1.0 if number == 5 else number * 1.0)) for number in range(16)
        ]
        let_go(pool, path, futures)
        for number, future in enumerate(futures):
            if number == 5:
                with pytest.raises(WorkerDied, match="SIGKILL"):
                    future.result()
            else:
                assert torch.equal(future.result(), torch.full((1, 2), number * 1.0))


def test_hooks_join_and_divide(batching_pool, tmp_path):
    longest = batching_pool.model("hooked", method="longest")
    path, _ = busy(batching_pool, tmp_path)
    inputs = [torch.arange(1.0, 2 + number % 7) for number in range(40)]
    futures = [longest.submit(x) for x in inputs]
    let_go(batching_pool, path, futures)
    assert all(torch.equal(future.result(), x) for future, x in zip(futures, inputs, strict=True))
    assert len(calls_of(batching_pool, "hooked")) < 20


def test_a_hook_that_is_wrong_is_named(batching_pool, tmp_path):
    path, _ = busy(batching_pool, tmp_path)
    futures = [batching_pool.submit("wrong", torch.ones(1, 2)) for _ in range(32)]
    let_go(batching_pool, path, futures)
    errors = [future.exception() for future in futures]
    told = [error for error in errors if error is not None]
    assert told
    assert all("wrong: no_call was called with the arguments of" in str(error) for error in told)


def test_many_threads_with_inputs_of_many_kinds_get_what_they_get_alone(batching_pool):
    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        encode = batching_pool.model("plain", method="encode")
        for number in range(40):
            x = torch.randn(1 + number % 4, 3 + seed % 3, generator=generator)
            text = f"{seed} {number}" * (1 + number % 3)
            future, other = batching_pool.submit("plain", x), encode.submit(text)
            if not torch.equal(future.result(), x * 2) or other.result().tolist() != [len(text), ord(text[0])]:
                wrong.append((seed, number))

    wrong: list[tuple[int, int]] = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_map_gives_the_same_with_batches(batching_pool):
    inputs = [torch.full((1, 3), float(number)) for number in range(500)]
    results = list(batching_pool.map("plain", inputs))
    assert all(torch.equal(result, x * 2) for result, x in zip(results, inputs, strict=True))


def test_a_batch_is_never_larger_than_can_travel():
    text = "x" * (25 << 20)
    with Pool(Model(batch_models.Batched(), method="encode", max_batch=8), workers=1, slots=1) as pool:
        first = pool.submit("model", text)
        futures = [pool.submit("model", text) for _ in range(3)]
        assert [future.result().tolist() for future in [first, *futures]] == [[len(text), ord("x")]] * 4
