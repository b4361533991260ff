"""What cannot be frozen or thawed is named, with the way out."""

import sys
import threading
import types

import pytest
import torch
from freezing import shared, small_module
from onecopy.protocol.frozen import FreezeError, freeze, thaw
from onecopy.protocol.mapping import map_region
from torch import nn


@pytest.fixture
def small():
    return small_module()


def test_a_lock_is_named_by_its_path(small):
    model = nn.Module()
    model.encoder = nn.Sequential(small, nn.Linear(2, 2))
    small.lock = threading.Lock()
    expected = r"model\.encoder\[0\]\.lock \(a _thread\.lock\).*factory"
    with pytest.raises(FreezeError, match=expected) as info:
        freeze(model)
    assert isinstance(info.value.__cause__, TypeError)


def test_an_open_file_in_a_closure_is_named(small, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        small.hook = lambda: log.write(b"x")
        with pytest.raises(FreezeError, match=r"model\.hook\.<closure log> \(a _io\.BufferedWriter\)"):
            freeze(small)


def test_a_generator_is_named_wherever_it_hides(small):
    small.settings["deep"] = [types.SimpleNamespace(stream=iter(x for x in ()))]
    with pytest.raises(FreezeError, match=r"model\.settings\['deep'\]\[0\]\.stream \(a generator\)"):
        freeze(small)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_script_module_is_named(small):
    small.scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(FreezeError, match=r"model\.scripted.*ScriptModule.*factory"):
        freeze(small)


def test_an_error_in_getstate_is_the_cause():
    class Stubborn:
        def __getstate__(self):
            raise KeyError("no")

    with pytest.raises(FreezeError, match=r"model\['x'\] .*Stubborn") as caught:
        freeze({"x": Stubborn()})
    assert isinstance(caught.value.__cause__, KeyError)


def test_memory_of_another_device_is_refused_by_name():
    with pytest.raises(FreezeError, match=r"model\['x'\].*device 'meta'.*\.cpu\(\)"):
        freeze({"x": torch.UntypedStorage(64, device="meta")})


def test_a_tensor_of_another_device_is_refused_by_name(small):
    class OnGpu(torch.Tensor):
        """Claims a device that this machine may lack."""

        __torch_dispatch__ = None

    small.far = torch.Tensor._make_wrapper_subclass(OnGpu, (3,), device="cuda:0")
    with pytest.raises(FreezeError, match=r"model\.far .*device 'cuda:0'.*\.cpu\(\)"):
        freeze(small)


def test_a_missing_module_comes_through_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "vanishing.py").write_text("class Gone: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import vanishing

    frozen = freeze(vanishing.Gone())
    assert frozen.modules[-1] == "vanishing"
    (tmp_path / "vanishing.py").unlink()
    monkeypatch.delitem(sys.modules, "vanishing")
    with pytest.raises(ModuleNotFoundError, match="vanishing"):
        thaw(frozen.skeleton, frozen.manifest, [])


def test_mappings_must_fit_the_manifest(small):
    frozen = freeze(small)
    with pytest.raises(ValueError, match="0 mappings were given; the manifest has 1"):
        thaw(frozen.skeleton, frozen.manifest, [])
    with shared(frozen) as regions:
        short = map_region(regions[0].fd, 4096)
    with pytest.raises(ValueError, match="mapping 0 has 4096 bytes"):
        thaw(frozen.skeleton, frozen.manifest, [short])
