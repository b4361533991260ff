"""What the README's table says of each part of the results: what onecopy needs, and what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

#: What was measured, what onecopy needs for it, and what stands beside it.
Row = tuple[str, str, str]


# --- figures -------------------------------------------------------------------------------------------------


def _x(ratio: float) -> str:
    """Return a ratio."""
    return f"{ratio:.2f} x"


def _mb(size_mb: float) -> str:
    return f"{size_mb:,.0f} MB"


def _us(time_us: float) -> str:
    return f"{time_us:,.0f} us" if time_us < 1000 else f"{time_us / 1000:.2g} ms"


def _rate(per_second: float) -> str:
    """Return a rate with three digits that count."""
    digits = 10 ** max(0, len(str(int(per_second))) - 3)
    return f"{round(per_second / digits) * digits:,}/s"


def package(conditions: dict[str, Any]) -> str:
    """Return which form of the package figures are of."""
    return "the package as wheels have it, compiled" if conditions.get("compiled") else "the package interpreted"


# --- rows ----------------------------------------------------------------------------------------------------


def _memory(one: dict[str, Any]) -> Iterator[Row]:
    pool, plain = one["pool, MB by workers"], one["plain processes, MB by count"]
    mapped, copied = (
        one["pool of 1 with the file mapped, MB"],
        one["a plain process with its weights in memory, MB"],
    )
    yield (
        "all-MiniLM-L6-v2 (91 MB), warm, each worker has run: 1 worker",
        _mb(pool["1"]),
        (
            f"a plain process with its weights in memory {_mb(copied)} ({_x(pool['1'] / copied)}), one that "
            f"maps their file, of which it touches half, {_mb(plain['1'])} ({_x(pool['1'] / plain['1'])})"
        ),
    )
    yield (
        'the same with `residency="file"`',
        _mb(mapped),
        f"the plain process that maps the file as well ({_x(mapped / plain['1'])})",
    )
    yield (
        "8 workers, 8 slots",
        _mb(pool["8"]),
        f"8 plain processes {_mb(plain['8'])} ({_x(pool['8'] / plain['8'])})",
    )
    further = (plain["8"] - plain["1"]) / 7
    yield "each worker beyond the first, at most", _mb(one["each worker beyond the first adds, MB"]), _mb(further)
    yield "8 workers ready, from the end of the load", f"{one['8 workers ready after the load, s']:.1f} s", ""


def _start(one: dict[str, Any]) -> Iterator[Row]:
    served = f"{one['serves after, s']:.2f} s / {_mb(one['supervisor, MB'])}"
    yield "supervisor: serves after / takes", served, ""


def _weights(one: dict[str, Any]) -> Iterator[Row]:
    plain_peak, busy = (
        one["peak of load_state_dict, one process / file"],
        one["p99 of a small request while it loads"],
    )
    yield (
        f"{one['file, GB']:.1f} GB of safetensors loaded: most memory, 8 workers",
        f"{_x(one['peak of loading, 8 workers / file'])} the file",
        f"`load_state_dict` in one process {_x(plain_peak)}",
    )
    yield (
        "ready after, hashing included",
        f"{one['load, pool, s']:.1f} s",
        (
            f"bare copy by the kernel {one['load, bare kernel copy, s']:.1f} s, "
            f"`load_state_dict` {one['load, plain, s']:.1f} s"
        ),
    )
    yield 'the same with `residency="file"`', f"{one['load, pool, mapped, s']:.2f} s", ""
    beyond_ms = one["attaching 2 GB, beyond unpickling, ms"]
    yield "a worker attaches it, beyond unpickling its skeleton", f"{beyond_ms:.1f} ms", ""
    yield "10 models with one backbone", f"{_x(one['10 models with one backbone / one of them'])} one of them", ""
    yield "p99 of a small request while it is loaded", _x(busy["ratio"]), "without a load beside it"


def _small(one: dict[str, Any]) -> Iterator[Row]:
    p50 = {name: times["p50_us"] for name, times in one["latency, 1 kB"].items()}
    rates, numbers, ratios = one["requests per second, 1 kB"], one["numbers per second"], one["ratios"]
    yield (
        "1 kB array, one at a time, p50",
        _us(p50["onecopy"]),
        (
            f"bare two-hop pyzmq relay {_us(p50['relay'])} ({_x(ratios['p50 / relay'])}); "
            f"`ProcessPoolExecutor` {_us(p50['executor'])} ({_x(ratios['p50 / executor'])})"
        ),
    )
    yield (
        "1 kB arrays, 10,000 submitted at once by one client",
        _rate(rates["onecopy"]),
        (
            f"`ProcessPoolExecutor` {_rate(rates['executor'])} ({_x(ratios['throughput / executor'])}); "
            f"bare relay {_rate(rates['relay'])}"
        ),
    )
    yield (
        "the same, each in a message of its own (`retries=0`)",
        _rate(rates["onecopy, alone"]),
        f"{_x(ratios['throughput alone / executor'])} `ProcessPoolExecutor`",
    )
    yield "`map` over 1 kB arrays", _rate(rates["onecopy map"]), ""
    chunks = max(rate for name, rate in numbers.items() if "chunks" in name)
    yield (
        "`map` over numbers",
        _rate(numbers["onecopy map"]),
        (
            f"`ProcessPoolExecutor.map` {_rate(numbers['executor map, one by one'])}, with the best of three "
            f"chunk sizes {_rate(chunks)}; relay, one by one, {_rate(numbers['relay, one by one'])}"
        ),
    )


def _two_models(one: dict[str, Any]) -> Iterator[Row]:
    def kept(how: str) -> list[float]:
        return list(one[how]["kept beside the other"].values())

    def both(values: list[float]) -> str:
        return " and ".join(f"{value:.2f}" for value in values)

    yield (
        "two language models of 2 sizes at once, one user each: tokens/s of each, relative to it alone",
        both(kept("one at a time, pool")),
        f"a thread for each in one process {both(kept('one at a time, threads of one process'))}",
    )
    shares = {"1:1": (1, 1), "3:1": (3, 1), "1:3": (1, 3)}
    found = {
        name: [
            value * sum(weights) / weight
            for value, weight in zip(kept(f"saturated, shares {name}, pool"), weights, strict=False)
        ]
        for name, weights in shares.items()
    }
    told = "; ".join(f"{name}: {both(values)}" for name, values in found.items())
    yield "the same saturated, by shares: of what each is due", told, ""


def _budget(one: dict[str, Any]) -> Iterator[Row]:
    most_mb, budget_mb = one["most seen from outside, MB"], one["budget, MB"]
    best = one["hits of the offline optimum, one request after the other"]
    yield (
        f"10 models of 200 MB, budget for 3, {one['requests']:,} requests by Zipf's law, 64 at once: no return",
        f"{one['hits']:.0%}",
        f"what no cache can beat that serves them one by one (Belady) {best:.0%}",
    )
    yield "... most memory seen from outside", _mb(most_mb), f"budget {_mb(budget_mb)} ({_x(most_mb / budget_mb)})"
    copy_ms = one["copy of 200 MB into new memory, ms"]
    yield (
        "return of 200 MB from the disk, its pages in the system's cache",
        _us(one["return of 200 MB, ms"] * 1e3),
        f"copy in memory {_us(copy_ms * 1e3)} ({_x(one['return / copy'])})",
    )
    first_ms = one["first request that reads all of them, over one that finds them there, ms"]
    yield (
        "... what it costs the request that waits for it and reads all of it, in all",
        _us(first_ms * 1e3),
        f"{_x(one['first request / copy'])} the copy",
    )


def _batching(one: dict[str, Any]) -> Iterator[Row]:
    names = {
        "MLP, 512 wide": "stack of 6 linear layers, 512 wide, one row a request",
        "MiniLM, one short text": "MiniLM, one short text a request",
    }
    for case, about in names.items():
        found = one[case]
        rates = found["throughput, requests/s"]
        yield (
            f"{about}: `max_batch=32`",
            _rate(rates["batched"]),
            (
                f"without {_rate(rates['single'])} ({_x(found['throughput, batched / single'])}); "
                f"p99 at {_rate(found['offered, requests/s'])}: {_x(found['p99, batched / single'])}"
            ),
        )


def _tensors(one: dict[str, Any]) -> Iterator[Row]:
    p50, ratios, whole = one["latency, 602 kB, us"], one["ratios"], one["64 MB, ms"]
    rates = next(value for name, value in one.items() if name.startswith("requests per second"))
    yield (
        "602 kB tensor there and back, p50",
        _us(p50["onecopy"]),
        (
            f"`ProcessPoolExecutor`: NumPy array {_us(p50['executor'])} ({_x(ratios['602 kB p50 / executor'])}), "
            f"torch tensor {_us(p50['executor, torch tensor'])} "
            f"({_x(ratios['602 kB p50 / executor, torch tensor'])})"
        ),
    )
    times = {name: rates["onecopy"] / rate for name, rate in rates.items()}
    yield (
        "the same, 8 under way",
        _rate(rates["onecopy"]),
        (
            f"`ProcessPoolExecutor`: NumPy array {_rate(rates['executor'])} ({_x(times['executor'])}), "
            f"torch tensor {_rate(rates['executor, torch tensor'])} ({_x(times['executor, torch tensor'])})"
        ),
    )
    copies = whole["there and back"] / whole["a copy"]
    yield (
        "64 MB tensor there and back",
        f"{whole['there and back']:.0f} ms",
        (
            f"a copy {whole['a copy']:.1f} ms: {_x(copies / 4)} the two there and two back that are said to be "
            f"unavoidable, {_x(copies / 3)} the three that are made"
        ),
    )


def _activations(one: dict[str, Any]) -> Iterator[Row]:
    largest = max(one["one run in a plain process, MB"].values())
    yield (
        "activations of 8 workers, 4 models, 2 slots, at most",
        _mb(one["pool, MB: all activations"]),
        (
            f"8 plain processes {_mb(one['plain processes, MB'])}; slots are "
            f"{_x(one['(slots + spilled) / (2 x the largest)'])} twice the largest model's need ({_mb(largest)})"
        ),
    )
    yield (
        "... of which each worker has besides slots",
        _mb(one["pool, MB: each worker besides"]),
        "oneDNN's and OpenMP's scratch, code that is touched, Python's objects",
    )
    shapes = one["10,000 shapes"]
    yield (
        "10,000 requests of changing shapes: private memory grows by",
        f"{shapes['private memory of both workers grew by, MB']:.1f} MB",
        f"{shapes['wrong answers']} wrong answers, {shapes['runs that did not fit']} runs that did not fit",
    )


def _forwards(one: dict[str, Any]) -> Iterator[Row]:
    for name, found in one.items():
        if "slot, ms" not in found:
            continue
        yield (
            f"a forward in a slot, one thread: {name}",
            f"{found['slot, ms']:,.0f} ms, {found['slot, page faults']:,.0f} page faults",
            (
                f"plain torch {found['plain, ms']:,.0f} ms ({_x(found['slot / plain'])}), "
                f"{found['plain, page faults']:,.0f} page faults"
            ),
        )


def _soak(one: dict[str, Any]) -> Iterator[Row]:
    requests = one["requests"]
    wrong = sum("have grown by" not in violation for violation in one["violations in words"])
    yield (
        (
            f"`{one['command']}`: {one['kills']:,} kills of workers, loaders, zygotes, clients and jobs under "
            f"{requests['accepted']:,} requests"
        ),
        (
            f"{wrong} wrong, lost or doubled answers, or things left behind; "
            f"{one['transitions covered']} state transitions"
        ),
        (
            f"private memory and regions at rest grew by {one['growth']:.1%}, "
            f"of {one['growth allowed']:.0%} allowed; {package(one)}"
        ),
    )


def _chaos(one: dict[str, Any]) -> Iterator[Row]:
    chaos = one["chaos"]
    kills = sum(count for what, count in chaos.items() if what.startswith("happened: kill"))
    yield (
        f"`scripts/simulate chaos --hours {chaos['hours']:.0f}`: {chaos['requests']:,} requests, {kills:,} kills",
        f"{chaos['violations']} violations",
        f"{chaos['real seconds']:.0f} s",
    )


def _core(one: dict[str, Any]) -> Iterator[Row]:
    costs = one["costs"]
    small, large = costs["small"], costs["large"]
    for what in ("a request comes", "a run ends"):
        median = costs[f"{what}: median, us"]
        yield (
            (
                f"the core, {what} (`scripts/simulate costs`): {small['workers']} workers, 1 model, "
                f"{small['requests that wait']} requests wait"
            ),
            f"{median['small']:.0f} us",
            (
                f"{large['workers']:,} workers, {large['models']} models, {large['requests that wait']:,} wait: "
                f"{median['large']:.0f} us ({_x(median['large / small'])}): what it touches is in no cache"
            ),
        )


def _demo(one: dict[str, Any]) -> Iterator[Row]:
    rates = one["texts per second"]
    yield (
        (
            f"`scripts/demo`: {one['texts compared']:,} of {one['docstrings']:,} docstrings "
            "in batches of 32, 8 workers"
        ),
        f"{rates['pool']:.0f} texts/s",
        (
            f"one plain process with {one['cores']} threads {rates['plain']:.0f} texts/s "
            f"({_x(rates['pool'] / rates['plain'])}); {one['batches that are equal']} of "
            f"{one['batches compared']} batches equal bit for bit with as many threads"
        ),
    )


#: By part of the results: what tells its rows.
PARTS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "memory": _memory,
    "start": _start,
    "weights": _weights,
    "small": _small,
    "tensors": _tensors,
    "batching": _batching,
    "two models": _two_models,
    "budget": _budget,
    "forwards": _forwards,
    "activations": _activations,
    "soak": _soak,
    "chaos": _chaos,
    "core": _core,
    "demo": _demo,
}
