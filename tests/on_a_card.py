"""What only a process with a GPU can try of transfers; it prints what the GPU said when it was lost."""

from __future__ import annotations

import torch
from onecopy.protocol.gpu import begin
from onecopy.workers.ahead import LEAST_BYTES
from onecopy.workers.cuda_errors import LOST, ContextLost, lost_by
from onecopy.workers.pinned import PIECE_BYTES, RING_BYTES
from onecopy.workers.transfers import transfers_of

SIZES_BYTES = (0, 1, 63, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * RING_BYTES + 5)


def check_bytes(transfers, sizes_bytes):
    """Send and fetch tensors of these sizes, all before anything is waited for."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in sizes_bytes]
    there = transfers.sent({"values": values})["values"]
    back = transfers.fetched([one + 1 for one in there])
    transfers.finish()
    for value, one in zip(values, back, strict=True):
        assert torch.equal(one, value + 1)


def check_ahead(transfers):
    """Bring what the next attempt is given while the GPU is busy with the one before, several times."""
    generator = torch.Generator().manual_seed(2)
    sizes_bytes = range(LEAST_BYTES, LEAST_BYTES + 6)
    values = [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in sizes_bytes]
    ahead = transfers.ahead
    for attempt, value in enumerate(values):
        ahead.begin(attempt)
        there = transfers.sent(value)
        back = transfers.fetched(there + 1)
        following = values[(attempt + 1) % len(values)]
        ahead.bring(attempt + 1, following)
        transfers.finish()
        ahead.end()
        assert torch.equal(back, value + 1)


def check_loss(transfers, device):
    """Have an index out of range, which a kernel finds, end the use of the GPU; return what is said of it."""
    table = torch.zeros(3, device=device)
    try:
        table[torch.tensor([1_000_000], device=device)]
        transfers.finish()
    except (ContextLost, RuntimeError) as error:
        lost = lost_by(error)
    assert lost is not None
    return LOST[lost.error_code]


if __name__ == "__main__":
    gpu = begin(0)
    assert gpu is not None
    transfers = transfers_of(gpu)
    assert transfers is not None
    for _ in range(3):
        check_bytes(transfers, SIZES_BYTES)
        check_ahead(transfers)
    print(check_loss(transfers, gpu.device))
