"""What a pool tells, as metrics in Prometheus's format, and whether it is alive and ready.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only grows.
Needs prometheus-client, which `onecopy[metrics]` installs; only the process that serves metrics imports this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from .memory_views import Told
from .views import ModelInfo, Status

#: Values of labels, and what was measured.
_Sample: TypeAlias = tuple[Sequence[str], float]
#: States of a warm model that has never been ready since it was declared.
_NOT_YET: Final = ("declared", "building", "adopting", "failed")


class _Family(NamedTuple):
    """Samples of one name."""

    kind: Callable[..., CounterMetricFamily | GaugeMetricFamily]
    name: str
    help: str
    labels: Sequence[str]
    samples: Callable[[Told], Iterable[_Sample]]


_MODEL: Final = ("model", "device")
_FAMILIES: Final = (
    _Family(
        CounterMetricFamily, "onecopy_requests", "Calls that ended, by how.", (*_MODEL, "outcome"),
        lambda told: _outcomes(told.status.models),
    ),
    _Family(
        CounterMetricFamily, "onecopy_retries", "Attempts that were repeated because a worker died.", (),
        lambda told: [((), told.status.retried)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_unanswered", "Requests that are accepted and not answered.", (),
        lambda told: [((), told.status.unanswered)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_queue_length", "Calls that wait for a worker.", _MODEL,
        lambda told: [(_labels(one), one.queued) for one in told.status.models],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_running", "Attempts that workers have.", _MODEL,
        lambda told: [(_labels(one), one.running) for one in told.status.models],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_batch_size", "Calls that batches had on average so far.", _MODEL,
        lambda told: [(_labels(one), one.batch.mean) for one in told.status.models if one.batch.most > 1],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_model_state", "1 for the state that a model is in.", (*_MODEL, "state"),
        lambda told: [((*_labels(one), one.state), 1) for one in told.status.models],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_model_weights_bytes", "The one copy of a model, in memory or not.", _MODEL,
        lambda told: [(_labels(one), one.weights_bytes) for one in told.status.models],
    ),
    _Family(
        CounterMetricFamily, "onecopy_evictions", "How often weights left memory for the disk.", _MODEL,
        lambda told: _by_model(told, "evictions"),
    ),
    _Family(
        CounterMetricFamily, "onecopy_returns", "How often weights came back from the disk.", _MODEL,
        lambda told: _by_model(told, "returns"),
    ),
    _Family(
        GaugeMetricFamily, "onecopy_workers", "Worker processes.", ("device", "state"),
        lambda told: _counted((one.device, one.state) for one in told.status.workers),
    ),
    _Family(
        GaugeMetricFamily, "onecopy_concurrency", "How many workers may run at once now.", (),
        lambda told: [((), told.status.concurrency)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_slots", "Slots that runs take their memory from.", ("workspace", "device"),
        lambda told: [((one.name, one.device), one.slots) for one in told.status.rings],
    ),
    _Family(
        CounterMetricFamily, "onecopy_spills", "Runs that did not fit into their slot.", ("workspace", "device"),
        lambda told: [((one.name, one.device), one.spills) for one in told.status.rings],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_memory_bytes", "What the pool takes of a device.", ("device", "account"),
        lambda told: [
            ((one.name, account), taken) for one in told.memory.devices for account, taken in one.accounts.items()
        ],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_memory_limit_bytes", "The most that it may take of a device.", ("device",),
        lambda told: [((one.name,), one.limit_bytes) for one in told.memory.devices],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_memory_free_bytes", "How much more it may take now.", ("device",),
        lambda told: [((one.name,), one.free_bytes) for one in told.memory.devices],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_disk_bytes", "What it takes on the disk for evicted weights.", ("device",),
        lambda told: [((one.name,), one.disk_bytes) for one in told.memory.devices],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_total_bytes", "What all processes and regions take together.", (),
        lambda told: [((), told.memory.total_bytes)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_weights_bytes", "The one copy of all weights that are in memory.", (),
        lambda told: [((), told.memory.weights_bytes)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_weights_unshared_bytes", "What private copies in workers would take.", (),
        lambda told: [((), told.memory.weights_bytes_unshared)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_processes", "Processes of the pool.", ("role",),
        lambda told: _counted((one.role,) for one in told.memory.processes),
    ),
    _Family(
        GaugeMetricFamily, "onecopy_clients", "Clients that are connected, this one included.", (),
        lambda told: [((), told.status.clients)],
    ),
    _Family(
        CounterMetricFamily, "onecopy_inline_requests", "Requests of local clients with arrays in sockets.", (),
        lambda told: [((), told.status.mailboxes.inline)],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_fallbacks", "How much is done in a second-best way; see `status`.", (),
        lambda told: [((), len(told.status.fallbacks))],
    ),
    _Family(
        GaugeMetricFamily, "onecopy_uptime_seconds", "How long the supervisor runs.", (),
        lambda told: [((), told.status.uptime_s)],
    ),
)  # fmt: skip


class Metrics:
    """A collector, as `prometheus_client.registry.CollectorRegistry` has them.

    Args:
        told: what a pool told.
    """

    def __init__(self, told: Told) -> None:
        self._told = told

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        for family in _FAMILIES:
            made = family.kind(family.name, family.help, labels=family.labels)
            for labels, value in family.samples(self._told):
                made.add_metric(list(labels), value)
            yield made
        yield _run_seconds(self._told.status.models)


def complaints(status: Status) -> list[str]:
    """Return why a pool is not ready to answer, a sentence for each reason; none if it is.

    It is once a worker is there, and every model that is to be warm was loaded. One that lies on the disk since is
    no reason, as it returns when it is needed.
    """
    found = ["the pool is stopping"] if status.is_stopping else []
    if not any(one.pid and one.is_thawed for one in status.workers):
        found.append("no worker is ready")
    for one in status.models:
        if one.is_warm and one.state in _NOT_YET:
            why = f": {one.error.get('message', '')}" if one.error else ""
            found.append(f"model {one.name!r} on {one.device} is {one.state}{why}")
    return found


def _run_seconds(models: Iterable[ModelInfo]) -> HistogramMetricFamily:
    family = HistogramMetricFamily("onecopy_run_seconds", "How long runs took in a worker.", labels=_MODEL)
    for one in models:
        so_far = 0
        buckets: list[tuple[str, float]] = []
        bounds = [*map(str, one.run_times.bounds_s), "+Inf"]
        for bound, count in zip(bounds, one.run_times.counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        family.add_metric(list(_labels(one)), buckets, one.worker_s)
    return family


def _labels(model: ModelInfo) -> tuple[str, str]:
    return (model.name, model.device)


def _outcomes(models: Iterable[ModelInfo]) -> Iterator[_Sample]:
    for one in models:
        yield (*_labels(one), "answered"), one.answered
        yield (*_labels(one), "failed"), one.failed


def _by_model(told: Told, field: str) -> list[_Sample]:
    """Return a sum over the versions of each model."""
    sums: Counter[tuple[str, str]] = Counter()
    for one in told.memory.weights:
        sums[one.model, one.device] += getattr(one, field)
    return list(sums.items())


def _counted(keys: Iterable[Sequence[str]]) -> list[_Sample]:
    return list(Counter(map(tuple, keys)).items())
