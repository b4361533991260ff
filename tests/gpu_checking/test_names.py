"""Names that a run takes from libraries: there is no GPU here on which a wrong one would be found."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(importlib.import_module("gpu_checking").__file__).parent
TREES = {path.name: ast.parse(path.read_text()) for path in FOLDER.rglob("*.py")}


def attributes_of(*path):
    """Every ``a.b.c...`` in the checks that starts with a path, as the names after that."""
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            names = []
            while isinstance(node, ast.Attribute):
                names.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name) and (node.id, *names)[: len(path)] == path and len(names) >= len(path):
                found.add(tuple(names[len(path) - 1 :]))
    return sorted(found)


def resolve(value, names):
    for name in names:
        value = getattr(value, name)
    return value


def test_the_driver_has_all_that_is_asked_of_it():
    driver = pytest.importorskip("cuda.bindings.driver")
    used = attributes_of("driver")
    assert len(used) > 30
    for names in used:
        resolve(driver, names)
    for alias, enum in (("rights", driver.CUmemAccess_flags), ("names", driver.CUdevice_attribute)):
        for names in attributes_of(alias):
            resolve(enum, names)


def test_structures_of_the_driver_have_the_fields_that_are_set():
    driver = pytest.importorskip("cuda.bindings.driver")
    from gpu_checking import vmm

    properties = vmm._properties()
    assert properties.location.type == driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    assert properties.type == driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    assert int(driver.CUmemGenericAllocationHandle(5)) == 5
    assert int(driver.CUresult.CUDA_SUCCESS) == 0
    access = driver.CUmemAccessDesc()
    access.location.id = 3
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READ
    assert access.location.id == 3


def test_nvml_has_all_that_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml")
    used = attributes_of("self", "_nvml") + attributes_of("pynvml") + attributes_of("nvml")
    assert len(used) > 10
    for names in used:
        if names[0].startswith(("nvml", "NVML")):
            resolve(pynvml, names[:1])


def test_torch_has_all_private_names():
    """In its stubs: the build without CUDA lacks most of them."""
    stubs = (Path(torch.__file__).parent / "_C" / "__init__.pyi").read_text()
    used = attributes_of("torch", "_C")
    assert {names[0] for names in used} == {
        "_construct_storage_from_data_pointer", "_cuda_clearCublasWorkspaces", "_cuda_customAllocator",
    }  # fmt: skip
    for names in used:
        assert f"def {names[0]}(" in stubs


def test_torch_cuda_has_all_public_names():
    used = attributes_of("torch", "cuda")
    assert len(used) > 15
    for names in used:
        resolve(torch.cuda, names[:1])
    assert torch.cuda.gds.GdsFile.load_storage
    assert "include_traces" in torch.cuda.MemPool.snapshot.__code__.co_varnames
