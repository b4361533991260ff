"""The largest model that workers can be told of, and how one is refused that is larger."""

from __future__ import annotations

import pool_models
import pytest
import torch
from onecopy.pool import LoadFailed, Pool
from onecopy.protocol import frames, shareable
from onecopy.protocol.limits import MAX_SKELETON_BYTES, MAX_STORAGES
from onecopy.protocol.manifest import MAX_BLOBS, Manifest
from onecopy.protocol.messages import LoadModel, ModelBuilt, Thaw
from onecopy.protocol.shareable import check_shareable


def test_what_is_just_small_enough_travels_from_its_loader_and_to_workers():
    manifest = Manifest.laid_out(
        [(1 << 40, "parameter")] * MAX_BLOBS + [(5000, "parameter")] * (MAX_STORAGES - MAX_BLOBS)
    )
    skeleton = bytes(MAX_SKELETON_BYTES)
    check_shareable("m", len(manifest.storages), len(skeleton))
    wire, regions = manifest.to_wire(), list(range(1 << 40, (1 << 40) + MAX_BLOBS + 1))
    for message in (
        ModelBuilt(wire, skeleton, ["module"] * 5000, regions, False, ["note"] * 100),
        Thaw(1, "m", {"warm": True}, wire, skeleton, ["/app"] * 100, [], True),
        LoadModel("m", "frozen", {}, wire, skeleton, ["module"] * 5000, ["/app"] * 100, regions, True, []),
    ):
        decoder = frames.StreamDecoder()
        for part in frames.stream_parts(message):
            for start in range(0, len(part), 1 << 18):
                piece = bytes(memoryview(part)[start : start + (1 << 18)])
                decoder.space()[: len(piece)] = piece
                decoder.wrote(len(piece))
                decoder.decode()
        received = decoder.arrived.popleft().message
        assert type(received) is type(message)
        assert received.manifest == wire


@pytest.mark.parametrize(
    ("storages", "skeleton_bytes", "complaint"),
    [
        (MAX_STORAGES + 1, 0, r"m: the model has 200,001 storages, at most 200,000 can be shared"),
        (0, MAX_SKELETON_BYTES + 1, r"m: without its .* a pickle of 58,720,257 bytes, at most 58,720,256 can be"),
    ],
)
def test_what_is_too_large_is_refused_with_both_numbers(storages, skeleton_bytes, complaint):
    with pytest.raises(LoadFailed, match=complaint):
        check_shareable("m", storages, skeleton_bytes)


def test_an_object_that_is_too_large_is_refused_before_any_of_it_is_filled(monkeypatch):
    with Pool({"scale": pool_models.Scale(3.0)}, workers=1) as pool:
        before_bytes = pool.memory().weights_bytes
        monkeypatch.setattr(shareable, "MAX_STORAGES", 1)
        with pytest.raises(LoadFailed, match="m: the model has 2 storages, at most 1 can be shared"):
            pool.load("m", torch.nn.Linear(3, 3))
        monkeypatch.undo()
        assert pool.memory().weights_bytes == before_bytes
        pool.load("m", torch.nn.Linear(3, 3))
        assert float(pool.run("scale", torch.ones(1))) == 3.0
