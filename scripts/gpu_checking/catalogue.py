"""Which facts there are, in the order in which they are tried: what can harm the GPU for others comes last."""

from __future__ import annotations

from typing import Final

from .fact import Fact
from .facts import (
    f1_copies,
    f2_large_layer,
    f3_small_encoder,
    f4_peers,
    f5_priorities,
    t01_no_context,
    t02_import,
    t03_read_only,
    t04_exporter_dies,
    t05_descriptors,
    t06_killed_writer,
    t07_pool_in_a_slot,
    t08_residue,
    t09_lock_order,
    t10_graph,
    t11_host_memory,
    t12_accounts,
    t13_parts,
    t14_contexts,
    t15_mps,
    t16_events,
    t17_loading,
)

#: Together with the look at the machine before them they take at most 9 minutes.
FACTS: Final = (
    Fact("T1", 12, t01_no_context.check),
    Fact("T2", 20, t02_import.check),
    Fact("F1", 12, f1_copies.check),
    Fact("T13", 15, t13_parts.check),
    Fact("T5", 12, t05_descriptors.check),
    Fact("T4", 20, t04_exporter_dies.check),
    Fact("T7", 23, t07_pool_in_a_slot.check),
    Fact("T8", 23, t08_residue.check),
    Fact("T10", 20, t10_graph.check),
    Fact("T12", 18, t12_accounts.check),
    Fact("T14", 23, t14_contexts.check),
    Fact("T11", 24, t11_host_memory.check),
    Fact("T17", 30, t17_loading.check),
    Fact("F2", 15, f2_large_layer.check),
    Fact("F3", 25, f3_small_encoder.check),
    Fact("F4", 12, f4_peers.check),
    Fact("F5", 13, f5_priorities.check),
    Fact("T16", 24, t16_events.check),
    Fact("T9", 26, t09_lock_order.check),
    Fact("T3", 22, t03_read_only.check),
    Fact("T6", 38, t06_killed_writer.check),
    Fact("T15", 43, t15_mps.check),
)
