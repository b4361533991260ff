"""Numbers for children and regions. They tell the device, because each device gives every n-th of them."""

from __future__ import annotations


class Numbers:
    """Gives numbers that no other device of the pool gives; none is given twice.

    Args:
        device: which of the devices gives them, from 0.
        devices: how many there are.
    """

    __slots__ = ("_devices", "_last")

    def __init__(self, device: int = 0, devices: int = 1) -> None:
        self._last = device
        self._devices = devices

    def new(self) -> int:
        """Return a number, from 1."""
        self._last += self._devices
        return self._last

    def has_given(self, number: int) -> bool:
        """Whether a number is of this device, so that no other can have given it."""
        return number % self._devices == self._last % self._devices


def device_of(number: int, devices: int) -> int:
    """Return which of so many devices has given a number."""
    return number % devices
