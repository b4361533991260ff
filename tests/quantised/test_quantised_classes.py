"""Classes of quantised weights and layers come back as they were, and their memory moves with them."""

import pytest
import torch
from freezing import mapped, roundtrip, shared
from onecopy.protocol.frozen import freeze
from quantised_models import SHARED
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*(TypedStorage|quantized tensor creation).*:UserWarning"),
]


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind.startswith(("torchao", "bitsandbytes"))])
def test_weights_keep_their_class_and_the_original_joins_the_copy(kind):
    model = SHARED[kind][0]()
    frozen = freeze(model)
    with shared(frozen) as regions:
        mappings = mapped(regions)
    thawed = roundtrip(model)
    assert [type(weight) for weight in thawed.parameters()] == [type(weight) for weight in model.parameters()]
    assert all(getattr(layer.weight, "module", layer) is layer for layer in thawed)  # Params4bit knows its layer
    assert frozen.repoint(mappings) == 0


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_statically_quantised_convolutions_travel(layer):
    from torch.ao import quantization

    model = nn.Sequential(quantization.QuantStub(), layer(3, 8, 3), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    x = torch.randn(1, 3, *[8] * (layer(1, 1, 1).weight.dim() - 2))
    prepared = quantization.prepare(model)
    prepared(x)
    model = quantization.convert(prepared)
    assert torch.equal(roundtrip(model)(x), model(x))
