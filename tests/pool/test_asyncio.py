"""A pool under asyncio: runs, maps and streams, of many loops and threads at once; and what cancelling does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import request_models
from leftovers import wait_until
from module_pool import shared_pool
from onecopy.pool import ConfigError, ModelError


@pytest.fixture(scope="module")
def module_pool(tmp_path_factory):
    """One pool for the tests that change nothing in it."""
    models = {"quick": request_models.Quick(), "items": request_models.Yielding()}
    with shared_pool(tmp_path_factory, models) as pool:
        pool.run("quick", 0)
        yield pool


def is_idle(pool):
    return all(worker.outstanding == 0 for worker in pool.status().workers)


async def until(condition):
    """Wait for a condition without keeping the loop from its work."""
    return await asyncio.get_running_loop().run_in_executor(None, wait_until, condition)


# --- map -----------------------------------------------------------------------------------------------------


async def collect(results):
    return [y async for y in results]


async def collect_into(seen, results):
    async for y in results:
        seen.append(y)


def test_amap_gives_results_in_order(module_pool):
    assert asyncio.run(collect(module_pool.amap("quick", range(10_000)))) == list(range(10_000))
    assert asyncio.run(collect(module_pool.amap("quick", []))) == []


def test_amap_takes_an_asynchronous_source(module_pool):
    async def source():
        for x in range(3000):
            if x % 100 == 0:
                await asyncio.sleep(0)
            yield x

    assert asyncio.run(collect(module_pool.amap("quick", source()))) == list(range(3000))


def test_results_come_while_an_asynchronous_source_waits(module_pool):
    async def main():
        more = asyncio.Event()

        async def source():
            for x in itertools.count():
                yield x
                if x % 10 == 9:
                    await more.wait()
                    more.clear()

        results = module_pool.amap("quick", source())
        for x in range(50):
            assert await anext(results) == x
            if x % 10 == 9:
                more.set()
        await results.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("buffersize", [1, 5, 64])
@pytest.mark.parametrize("is_async", [True, False])
def test_amap_looks_no_further_ahead_than_said(module_pool, buffersize, is_async):
    pulled = 0

    def plain():
        nonlocal pulled
        for x in range(500):
            pulled += 1
            yield x

    async def asynchronous():
        for x in plain():
            yield x

    async def main():
        taken = 0
        source = asynchronous() if is_async else plain()
        async for y in module_pool.amap("quick", source, buffersize=buffersize):
            assert y == taken
            taken += 1
            assert pulled <= taken + buffersize
        assert taken == 500

    asyncio.run(main())


def test_amap_raises_what_a_run_and_what_the_source_raised_in_its_place(module_pool):
    async def broken():
        yield 1
        yield 2
        raise KeyError("source")

    async def main():
        seen = []
        with pytest.raises(ModelError, match="-3 is negative"):
            await collect_into(seen, module_pool.model("quick", method="checked").amap([1, 2, -3, 4]))
        with pytest.raises(KeyError, match="source"):
            await collect_into(seen, module_pool.amap("quick", broken()))
        assert seen == [1, 2, 1, 2]
        with pytest.raises(ConfigError, match="buffersize"):
            module_pool.amap("quick", [1], buffersize=0)

    asyncio.run(main())


def test_leaving_amap_gives_up_the_rest(module_pool):
    closed = []

    async def source():
        try:
            for x in itertools.count():
                yield x
        finally:
            closed.append(True)

    async def main():
        async with contextlib.aclosing(module_pool.amap("quick", source())) as results:
            async for y in results:
                if y == 500:
                    break
        assert await until(lambda: not module_pool._connection._expected)

    asyncio.run(main())
    assert closed == [True]


def test_cancelling_amap_ends_it_at_once(module_pool, tmp_path):
    async def main():
        begun = tmp_path / "begun"
        handle = module_pool.model("quick", method="wait_for")
        paths = [str(tmp_path / "go")]
        task = asyncio.create_task(collect(handle.amap(paths)))
        waiting = asyncio.create_task(handle.arun(str(tmp_path / "go"), str(begun)))
        assert await until(begun.exists)
        for one in (task, waiting):
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
        assert await until(lambda: not module_pool._connection._expected)

    asyncio.run(main())
    (tmp_path / "go").touch()
    assert wait_until(lambda: is_idle(module_pool))


# --- streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffersize", [1, 16])
def test_astream_gives_items_in_order_and_then_the_end(module_pool, buffersize):
    async def main():
        stream = module_pool.astream("items", 200, buffersize=buffersize)
        assert await collect(stream) == list(range(200))
        assert await anext(stream, "over") == "over"

    asyncio.run(main())


def test_an_error_comes_after_the_items_before_it(module_pool):
    async def main():
        seen = []
        with pytest.raises(ModelError, match="only 3"):
            await collect_into(seen, module_pool.model("items", method="fail_after").astream(3))
        assert seen == [0, 1, 2]

    asyncio.run(main())


def test_other_tasks_go_on_while_an_item_is_waited_for(module_pool, tmp_path):
    async def main():
        stream = module_pool.model("items", method="wait_between").astream(str(tmp_path / "go"))
        assert await anext(stream) == 0
        second = asyncio.ensure_future(anext(stream))
        assert await module_pool.arun("quick", 5) == 5
        assert not second.done()
        (tmp_path / "go").touch()
        assert await second == 1

    asyncio.run(main())


async def leave_the_loop(stream):
    async for item in stream:
        if item == 20:
            break


async def close(stream):
    assert await anext(stream) == 0
    await stream.aclose()
    await stream.aclose()
    assert await anext(stream, "over") == "over"


async def leave_the_block(stream):
    async with stream:
        assert await anext(stream) == 0


async def cancel_the_reader(stream):
    assert await anext(stream) == 0
    reader = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize("go_away", [leave_the_loop, close, leave_the_block, cancel_the_reader])
def test_a_reader_that_goes_away_frees_the_worker(module_pool, tmp_path, go_away):
    ended = tmp_path / "ended"

    async def main():
        await go_away(module_pool.model("items", method="endless").astream(str(ended), buffersize=2))
        assert await until(ended.exists)
        assert await until(lambda: is_idle(module_pool))

    asyncio.run(main())
    assert not module_pool._connection._expected


def test_cancelling_a_reader_that_waits_closes_the_stream(module_pool, tmp_path):
    async def main():
        stream = module_pool.model("items", method="wait_between").astream(str(tmp_path / "go"))
        assert await anext(stream) == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        assert await anext(stream, "over") == "over"

    asyncio.run(main())
    assert not module_pool._connection._expected
    (tmp_path / "go").touch()
    assert wait_until(lambda: is_idle(module_pool))


# --- all at once ---------------------------------------------------------------------------------------------


def test_many_loops_and_threads_use_one_pool_at_once(module_pool):
    async def everything(seed):
        results = await asyncio.gather(
            collect(module_pool.amap("quick", range(seed, seed + 500))),
            collect(module_pool.astream("items", 100)),
            *(module_pool.arun("quick", seed + x) for x in range(20)),
        )
        return results == [list(range(seed, seed + 500)), list(range(100)), *range(seed, seed + 20)]

    def in_a_loop(seed):
        return asyncio.run(everything(seed))

    def in_a_thread(seed):
        mapped = list(module_pool.map("quick", range(seed, seed + 500)))
        return mapped == list(range(seed, seed + 500)) and sum(module_pool.stream("items", 100)) == 4950

    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(in_a_loop if seed % 2 else in_a_thread, seed) for seed in range(8)]
        assert all(one.result() for one in done)
    assert not module_pool._connection._expected


def test_a_loop_that_is_closed_early_harms_nobody(module_pool):
    async def leave():
        asyncio.ensure_future(module_pool.arun("quick", 1))  # noqa: RUF006 - it is left behind on purpose
        stream = module_pool.astream("items", 10**9)
        await anext(stream)

    thread = threading.Thread(target=asyncio.run, args=(leave(),))
    thread.start()
    thread.join()
    assert module_pool.run("quick", 2) == 2
    assert wait_until(lambda: is_idle(module_pool))
