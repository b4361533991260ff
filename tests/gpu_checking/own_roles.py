"""What children of the tests do."""

import os
import signal

from gpu_checking.children import Link


def echoes(link: Link, *arguments) -> None:
    link.send(arguments=arguments, setting=os.environ.get("SETTING"))
    while True:
        message = link.receive()
        texts = [os.pread(fd, 100, 0).decode() for fd in message.fds]
        inheritable = [os.get_inheritable(fd) for fd in message.fds]
        link.send(message.fds, said=message["say"], texts=texts, inheritable=inheritable)


def exits(link: Link) -> None:
    os.write(2, b"first\nlast words\n")
    os._exit(3)


def ends_itself(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGABRT)


def returns(link: Link) -> None:
    pass


def sleeps(link: Link) -> None:
    link.send(pid=os.getpid())
    signal.pause()
