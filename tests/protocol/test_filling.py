"""Filling real regions: each content once, from memory or file, and nothing left behind whatever fails."""

import itertools
import os
import re
import threading

import numpy as np
import pytest
import torch
from allocated import allocated_bytes
from freezing import mapped, same_bits
from onecopy.pool.memory.memfd import MemfdStore
from onecopy.protocol.contents import OpenFiles
from onecopy.protocol.errors import OutOfBudget
from onecopy.protocol.filling import Filling, Grant, fill
from onecopy.protocol.frozen import freeze, thaw

MIB = 1 << 20


class Shelf:
    """What the supervisor does, in this process: real regions, found by size and digest."""

    def __init__(self):
        self.store = MemfdStore()
        self.regions = []  # by number
        self.found = {}  # size and digest -> number
        self.states = []  # what was answered
        self.asked = []  # how many were asked for at once
        self.offered = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for region in self.regions:
            self.store.close(region)

    def need(self, wants):
        self.asked.append(len(wants))
        return [self.answer(want) for want in wants]

    def answer(self, want):
        number = self.found.get(want) if want.digest else None
        state = "compare"
        if number is None:
            number, state = self.make(want), "fill"
        self.states.append(state)
        return Grant(number, state, os.dup(self.regions[number].fd))

    def make(self, want):
        self.regions.append(self.store.create(want.size_bytes, "test"))
        if want.digest:
            self.found.setdefault(want, len(self.regions) - 1)
        return len(self.regions) - 1

    def filled(self, number):
        self.store.seal(self.regions[number])

    def offer(self, path):
        self.offered.append(path)
        return 1000 + len(self.offered)

    def thawed(self, frozen, numbers):
        """The object again, from regions that are all complete."""
        regions = [self.regions[number] for number in numbers]
        assert all(region.sealed for region in regions)
        return thaw(frozen.skeleton, frozen.manifest, mapped(regions))


@pytest.fixture
def shelf():
    with Shelf() as made:
        yield made


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "onecopy-digests"] == []


def handed_over(obj, shelf, *, share=True, consume=False):
    """Freeze and fill; the frozen object and the numbers of its regions."""
    frozen = freeze(obj)
    with OpenFiles() as files:
        numbers = fill(frozen.fillings(files), shelf, share=share, consume=consume)
        files.check_unchanged()
    return frozen, numbers


def blob(seed, size_bytes=MIB):
    """Memory of torch's own, which can be given back."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size_bytes, np.uint8)).clone()


def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Pss_Anon: *(\d+)", file.read())[1]) * 1024


# --- what is shared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
def test_regions_hold_what_the_object_held(shelf, share):
    obj = {
        "blobs": [blob(1), blob(2, 3 * MIB + 5)],
        "small": [torch.arange(9.0), torch.tensor(True)],
        "array": np.arange(MIB),
    }
    frozen, numbers = handed_over(obj, shelf, share=share)
    assert set(shelf.states) == {"fill"}
    assert sorted(numbers) == list(range(4))  # three blobs and a pack
    again = shelf.thawed(frozen, numbers)
    assert all(map(same_bits, obj["blobs"] + obj["small"], again["blobs"] + again["small"]))
    assert np.array_equal(again["array"], obj["array"])


def test_what_another_has_filled_is_compared_and_not_stored_again(shelf):
    _, first = handed_over([blob(1), blob(2)], shelf)
    frozen, second = handed_over([blob(3), blob(2)], shelf)
    assert shelf.states == ["fill", "fill", "fill", "compare"]
    assert second[1] == first[1]
    assert second[0] not in first
    assert all(map(same_bits, [blob(3), blob(2)], shelf.thawed(frozen, second)))


def test_contents_of_one_digest_that_differ_get_regions_of_their_own(shelf, monkeypatch):
    monkeypatch.setattr(Filling, "digest", lambda _: bytes(16))
    objects = [[blob(seed)] for seed in range(3)]
    made = [handed_over(obj, shelf) for obj in objects]
    assert shelf.states == ["fill", "compare", "fill", "compare", "fill"]
    assert len({numbers[0] for _, numbers in made}) == 3
    for obj, (frozen, numbers) in zip(objects, made, strict=True):
        assert same_bits(obj[0], shelf.thawed(frozen, numbers)[0])


def test_a_difference_in_the_last_byte_is_found(shelf, monkeypatch):
    monkeypatch.setattr(Filling, "digest", lambda _: bytes(16))
    other = blob(1, 3 * MIB + 7)
    other[-1] ^= 1
    handed_over([blob(1, 3 * MIB + 7)], shelf)
    frozen, numbers = handed_over([other], shelf)
    assert shelf.states == ["fill", "compare", "fill"]
    assert same_bits(other, shelf.thawed(frozen, numbers)[0])


class Waiting(Shelf):
    """Says at first that another loader is filling what is wanted; that one is done when it is asked for again."""

    def __init__(self, other):
        super().__init__()
        self.other = other
        self.wanted = None

    def answer(self, want):
        if want == self.wanted:
            assert self.asked[-1] == 1
            assert all(region.sealed for region in self.regions)  # nobody waits while others wait for it
            number = self.found[want] = self.make(want)
            os.pwrite(self.regions[number].fd, self.other.numpy().tobytes(), 0)
            self.filled(number)
        elif self.wanted is None:
            self.wanted = want
            self.states.append("wait")
            return Grant(0, "wait", -1)
        return super().answer(want)


def test_what_another_is_filling_is_asked_for_again_when_all_else_is_filled():
    contents = [blob(seed) for seed in range(6)]
    with Waiting(contents[0]) as shelf:
        frozen, numbers = handed_over(contents, shelf)
        assert shelf.states == ["wait", *["fill"] * 5, "compare"]
        assert numbers[0] == 5
        assert all(map(same_bits, contents, shelf.thawed(frozen, numbers)))


def test_what_is_not_to_be_shared_is_neither_hashed_nor_found(shelf, monkeypatch):
    handed_over([blob(1)], shelf)
    monkeypatch.delattr(Filling, "digest")
    _, numbers = handed_over([blob(1), blob(1)], shelf, share=False)
    assert shelf.states == ["fill"] * 3
    assert len({0, *numbers}) == 3


def test_files_that_are_regions_are_offered_and_keep_their_places(shelf):
    filling = freeze(blob(1))
    with OpenFiles() as files:
        regions = ["/a", *filling.fillings(files), "/b"]
        assert fill(regions, shelf, share=True, consume=False) == [1001, 0, 1002]
    assert shelf.offered == ["/a", "/b"]
    assert fill([], shelf, share=True, consume=True) == []


# --- memory --------------------------------------------------------------------------------------------------


class Measuring(Shelf):
    """Notes what this process has to itself when a region is full and its content not yet given back."""

    def __init__(self):
        super().__init__()
        self.private_bytes = []
        self.allocated_bytes = []

    def filled(self, number):
        super().filled(number)
        self.private_bytes.append(private_bytes())
        self.allocated_bytes.append(allocated_bytes())


def test_what_is_consumed_gives_its_memory_back_piece_by_piece():
    size_bytes = 40 * MIB
    contents = [torch.full((size_bytes,), value, dtype=torch.uint8) for value in range(4)]
    with Measuring() as shelf:
        frozen, numbers = handed_over(contents, shelf, consume=True)
        drops = [one - other for one, other in itertools.pairwise([*shelf.allocated_bytes, allocated_bytes()])]
        assert min(drops) > size_bytes * 0.9
        assert all(content.untyped_storage().nbytes() == 0 for content in contents)
        again = shelf.thawed(frozen, numbers)
        assert all(bool((one == value).all()) for value, one in enumerate(again))


def test_memory_that_others_may_look_into_is_not_taken_from_them(shelf):
    array = blob(1).numpy()
    whole = blob(2, 3 * MIB)
    part = torch.from_dlpack(whole[MIB:])  # another storage over some of the same memory
    assert whole.untyped_storage().resizable()
    _, numbers = handed_over([array, whole, part], shelf, consume=True)
    assert len(numbers) == 3
    assert whole.untyped_storage().nbytes() == 3 * MIB
    assert np.array_equal(array, blob(1).numpy())
    assert torch.equal(whole, blob(2, 3 * MIB))
    assert torch.equal(part, blob(2, 3 * MIB)[MIB:])


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(blob(1, 32 * MIB).numpy().tobytes())
    return str(path)


def from_file(path, size_bytes=32 * MIB):
    return torch.from_file(path, shared=False, size=size_bytes, dtype=torch.uint8)


def resident_bytes(path):
    """How much of a file's mapping was ever touched."""
    with open("/proc/self/smaps") as file:
        _, _, rest = file.read().partition(path + "\n")
    return int(re.search(r"Rss: *(\d+)", rest)[1]) * 1024


@pytest.mark.parametrize("consume", [True, False])
def test_what_lies_in_a_file_goes_from_file_to_region_past_this_process(weights_file, consume):
    content = from_file(weights_file)
    with Measuring() as shelf:
        handed_over(torch.arange(9.0), shelf)  # what is imported at first use is
        frozen, numbers = handed_over(content, shelf, consume=consume)
        before, after = shelf.private_bytes
        assert after - before < 8 * MIB
        assert resident_bytes(weights_file) == 0
        assert same_bits(shelf.thawed(frozen, numbers), blob(1, 32 * MIB))
    assert same_bits(content, blob(1, 32 * MIB))  # the file is still there to be read


def test_a_mapping_that_was_written_is_memory(shelf, weights_file):
    content = from_file(weights_file)
    content[5 * MIB] ^= 1
    frozen, numbers = handed_over(content, shelf)
    assert same_bits(shelf.thawed(frozen, numbers), content)


def test_equal_contents_are_found_whether_they_lie_in_a_file_or_in_memory(shelf, weights_file):
    handed_over(blob(1, 32 * MIB), shelf)
    handed_over(from_file(weights_file), shelf)
    assert shelf.states == ["fill", "compare"]


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_file_that_is_written_meanwhile_is_told(weights_file):
    class Writing(Shelf):
        def filled(self, number):
            super().filled(number)
            with open(weights_file, "r+b") as file:
                file.write(b"other")
            os.utime(weights_file, ns=(0, 0))

    with Writing() as shelf, pytest.raises(OSError, match="changed while it was being loaded") as caught:
        handed_over(from_file(weights_file), shelf)
    assert caught.value.filename == weights_file


@pytest.mark.parametrize("share", [True, False])
def test_a_file_that_is_cut_meanwhile_is_told(weights_file, share):
    class Cutting(Shelf):
        def answer(self, want):
            os.truncate(weights_file, MIB)
            return super().answer(want)

    with Cutting() as shelf, pytest.raises(OSError, match=r"ends at [\d,]+ bytes; it was cut"):
        handed_over(from_file(weights_file), shelf, share=share)


def test_an_error_while_hashing_is_raised_where_the_regions_are_filled(shelf, monkeypatch):
    hashed = []

    def digest(filling):
        hashed.append(filling)
        if len(hashed) == 3:
            raise MemoryError("no room to hash")
        return bytes(15) + bytes([len(hashed)])

    monkeypatch.setattr(Filling, "digest", digest)
    with pytest.raises(MemoryError, match="no room to hash"):
        handed_over([blob(seed) for seed in range(5)], shelf)
    assert len(hashed) == 3


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_refusal_ends_the_hashing_however_much_is_left(asked_before):
    """The thread may wait for room for what it has hashed ahead, or hash just now."""

    class Refusing(Shelf):
        def need(self, wants):
            if len(self.asked) == asked_before:
                raise OutOfBudget("no memory is left")
            return super().need(wants)

    with Refusing() as shelf, pytest.raises(OutOfBudget, match="no memory is left"):
        handed_over([blob(seed) for seed in range(30)], shelf)


def test_a_region_that_is_sealed_too_early_is_told(shelf):
    class Sealed(Shelf):
        def answer(self, want):
            grant = super().answer(want)
            self.store.seal(self.regions[grant.number])
            return grant

    with Sealed() as sealed, pytest.raises(PermissionError):  # and no descriptor of the others is left
        handed_over([blob(seed) for seed in range(3)], sealed, share=False)
