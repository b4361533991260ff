"""How long one layer of a language model of 7 B parameters takes."""

from __future__ import annotations

from .. import torch_side
from ..check import Check
from ..children import Child, Link

LAYERS = 32
TOKENS = (1, 16, 512, 2048)


def check(check: Check) -> None:
    """So long a layer of a language model of 7 B parameters takes in plain torch: the floor of runs in slots."""
    with Child(measure) as worker:
        for name, value in worker.receive()["figures"].items():
            check.figure(name, value)


def measure(link: Link) -> None:
    """Run the layer on prompts of several lengths: as launched by Python, and replayed from a graph."""
    import torch

    from ..models import decoder_layer

    device = torch_side.start()
    layer = decoder_layer(device)
    size_bytes = sum(one.nbytes for one in layer.parameters())
    figures = {"parameters of the layer, MB": size_bytes / 1e6}
    with torch.inference_mode():
        for tokens in TOKENS:
            given = torch.randn(1, tokens, 4096, device=device, dtype=torch.bfloat16)
            figures[f"{tokens} tokens, ms"] = ms = torch_side.median_ms(lambda given=given: layer(given), 20, 5)
            if tokens == 1:
                # 50 MB of cache hold no more than a quarter of the layer, so most of it is read anew each time.
                figures["1 token, weights read, GB/s"] = size_bytes / ms / 1e6
                figures[f"1 token, {LAYERS} layers, ms"] = LAYERS * ms
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    layer(given)
                figures["1 token, from a graph, ms"] = torch_side.median_ms(graph.replay, 20, 5)
    link.send(figures=figures)
