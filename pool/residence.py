"""Where the weights of a pool's models are: in memory or on the disk, and on which device."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..protocol.messages import EvictModel, Message, MoveModel, PinModel
from .checks import check_name
from .control import ControlSocket
from .devices import check_device


class Residence(ABC):
    """What a `Pool` says about that; it decides by itself what nobody says."""

    def pin(self, name: str) -> None:
        """Keep a model's weights in memory: load them or bring them back if they are not, and never evict them.

        Returns at once; requests wait for the weights as ever. What comes back from the disk is a mapped file.

        Raises:
            ModelNotFound: no model has this name.
            InvalidRequest: the pool is reached over tcp.
        """
        self._order(PinModel(check_name("model", name), is_pinned=True))

    def unpin(self, name: str) -> None:
        """Let a model's weights be evicted again when they lie idle and their memory is needed.

        Raises:
            ModelNotFound: no model has this name.
            InvalidRequest: the pool is reached over tcp.
        """
        self._order(PinModel(check_name("model", name), is_pinned=False))

    def evict(self, name: str) -> None:
        """Move a model's weights from memory to the disk; returns when that is done.

        They come back with the next request. What the model shares with others that are in memory stays.

        Raises:
            ModelNotFound: no model has this name.
            InvalidRequest: it is pinned, in use by attached processes or sessions, or not loaded.
            OutOfBudget: there is no room on the disk.
        """
        self._order(EvictModel(check_name("model", name)))

    def move(self, name: str, device: str) -> None:
        """Have a model run on another device; returns when the memory that it had on the first one is free.

        A loader builds it there, from files that the system still caches. Until it is ready the first device
        answers, and what that has accepted by then it answers, too: no request fails or waits because of the move.
        Sessions begin anew there. If it cannot be loaded, it stays where it is.

        Args:
            name: of the model.
            device: where it shall be, such as ``"cpu:1"``, ``"cuda:0"``; nowhere else from now on, whatever
                `Model.device` says.

        Raises:
            ModelNotFound: no model has this name.
            ConfigError: no device is ever called that.
            InvalidRequest: there is no such device here; the model is being loaded or moved, is on several
                devices, or was handed over as an object; the pool is reached over tcp.
            OutOfBudget: there is no room.
            LoadFailed: it cannot be loaded there.
        """
        self._order(MoveModel(check_name("model", name), check_device(device)))

    def _order(self, message: Message) -> None:
        """Have the supervisor do what only its own user may ask for; return when it is done."""
        with self._control() as control:
            control.ask(message)

    @abstractmethod
    def _control(self) -> ControlSocket:
        """Return a new connection of the kind over which code and memory may travel."""
