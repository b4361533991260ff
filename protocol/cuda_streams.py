"""A stream of a GPU whose priority changes from one call to the next.

What of a GPU becomes free goes to the waiting work of the stream with the highest priority; nothing that runs is
stopped for it. Between processes that holds where NVIDIA's Multi-Process Service has them compute at the same
time.

It is a *blocking* stream, as CUDA calls those that keep to the order in which they and the default stream were
told something: what threads of a model, and libraries, do on that comes in its turn.
"""

from __future__ import annotations

from typing import Final

from .cuda import CudaError, attribute, call, named

#: The flag ``CU_STREAM_DEFAULT`` of cuda.h: not one of those that keep no order with the default stream.
_BLOCKING: Final = 0


class PriorityStream:
    """A stream of the GPU of this process, whose context becomes current in this thread. It lives as long as that.

    Args:
        ordinal: which of the devices that this process can see.

    Attributes:
        handle: its address, as torch takes it.

    Raises:
        CudaError: the driver refused.
    """

    def __init__(self, ordinal: int) -> None:
        call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal)))
        least, greatest = call("cuCtxGetStreamPriorityRange")  # the greatest is the lowest number
        self._levels = ((least + greatest) // 2, greatest, least)
        self._level: int = self._levels[0]
        self._stream = call("cuStreamCreateWithPriority", _BLOCKING, self._level)
        self.handle = int(self._stream)

    def follow(self, priority: int) -> None:
        """Have what is told from here on go before other work, or behind it.

        Args:
            priority: before it if this is above 0, behind it if below.

        Raises:
            CudaError: the driver refused.
        """
        level = self._levels[(priority > 0) - (priority < 0)]
        if level == self._level:
            return
        kind, value = named("CUstreamAttrID").CU_LAUNCH_ATTRIBUTE_PRIORITY, named("CUstreamAttrValue")()
        value.priority = level
        call("cuStreamSetAttribute", self._stream, kind, value)
        self._level = level


def computes_beside_others(ordinal: int) -> bool:
    """Whether the Multi-Process Service has contexts of a GPU compute at the same time.

    Raises:
        CudaError: the driver cannot be used, or there is no such device.
    """
    try:
        return bool(attribute(ordinal, "MPS_ENABLED"))
    except AttributeError:  # a binding that does not know it yet
        return False
    except CudaError as error:
        if error.result == "CUDA_ERROR_INVALID_VALUE":  # nor does the driver
            return False
        raise
