"""A core that tests tell what happened, event by event, and what they compare its answers with."""

from core.books import answer_to, body_of
from core.invariants import CheckedCore
from onecopy.pool.core import events
from onecopy.pool.core.instructions import ForkChild, Instruction, ToCaller, ToChild, ToClient
from onecopy.protocol.errors import PoolError
from onecopy.protocol.messages import BuildModel, Done, Failed, LoadModel, ModelBuilt, Reply, Run, Submit, Thaw


class Told(CheckedCore):
    """A core of which client ``ann`` is known; nothing happens in it but what the test says."""

    def __init__(self, workers: int = 1, slots: int = 0, **options: object) -> None:
        super().__init__(workers, slots, **options)
        self.feed(events.ClientJoined("ann"))

    def start(self, *models: str) -> "Told":
        """Let the zygote be ready, every worker be forked, and these models be loaded."""
        for one in self.feed(events.ZygoteReady("there are none here")):
            assert isinstance(one, ForkChild)
            self.forked(one.child)
        for name in models:
            self.declare(name)
        return self

    def forked(self, child: int) -> list[Instruction]:
        return self.feed(events.ChildForked(child, 10_000 + child))

    def exited(self, child: int, begun: int = 0, cause: str = "SIGSEGV") -> list[Instruction]:
        return self.feed(events.ChildExited(child, cause, begun, was_forked=True))

    def declare(self, name: str, source: str = "frozen", *, caller: object = None, **options: object):
        load = load_of(name, source, eager=bool(options.pop("eager", True)), **options)
        return self.feed(events.ModelDeclared(caller or object(), load))

    def built(self, child: int, *modules: str, regions: int = 0) -> list[Instruction]:
        """Let a loader fill this many regions and report."""
        numbers = self.fill(child, regions)
        built = ModelBuilt([], b"skeleton", list(modules), numbers, False, [])
        return self.feed(events.ModelBuilt(child, built))

    def fill(self, filler: object, regions: int) -> list[int]:
        """Let somebody fill this many regions that are not to be shared; return their numbers."""
        if not regions:
            return []
        granted = self.feed(events.RegionsNeeded(filler, [(4096, b"")] * regions))
        numbers = [grant.number for one in granted for grant in one.grants]
        assert self.feed(events.RegionsFilled(filler, numbers)) == []
        return numbers

    def submit(
        self, number: int, model: str = "m", *, timeout_s: float = 0.0, retries: int = 0, client: str = "ann",
        **more: object,
    ):  # fmt: skip
        submit = submit_of(number, model, client, timeout_s=timeout_s, retries=retries, **more)
        return self.feed(events.Submitted(client, submit, []))

    def ended(
        self, child: int, attempt: int, number: int, *, seconds: float = 1.0, error: PoolError | None = None
    ):
        answer = error.to_record() if error else [answer_to(body_of("ann", number)), [], [], 0]
        return self.feed(events.AttemptEnded(child, attempt, seconds, [answer], []))

    def wake(self, after_s: float) -> list[Instruction]:
        """Let time pass, and the core be woken a little later than it asked for."""
        self.now += after_s
        return self.feed(events.TimePassed())


def submit_of(number: int, model: str = "m", client: str = "ann", **fields: object) -> Submit:
    plain = Submit(number, model, "", 0.0, 0, 0, "", 0, 0, body_of(client, number), [], [])
    return plain._replace(**fields)


def load_of(
    name: str, source: str = "frozen", *, eager: bool = True, modules: tuple[str, ...] = (), **options: object
):
    return LoadModel(name, source, options, [], b"code", list(modules), [], [], eager, [])


def run(
    child: int, attempt: int, number: int, weight_set: int = 1, client: str = "ann", *, seat: int = 0
) -> ToChild:
    parts = [[body_of(client, number), [], [], 0, 0]]
    return ToChild(child, Run(attempt, weight_set, "__call__", parts, 0, seat, 0, 0, 0), [], ())


def thaw(child: int, weight_set: int = 1, name: str = "m", *, eager: bool = False, **options: object) -> ToChild:
    pickled = b"skeleton" if options.pop("is_built", False) else b"code"
    return ToChild(child, Thaw(weight_set, name, options, [], pickled, [], [], eager), [], ())


def build(child: int, name: str = "m", **options: object) -> list[Instruction]:
    order = BuildModel(name, "factory", options, [], b"code", [])
    return [ForkChild(child, "loader"), ToChild(child, order, [], ())]


def reply(number: int, seconds: float = 1.0) -> ToClient:
    return ToClient("ann", Reply(number, seconds, answer_to(body_of("ann", number)), [], []), [])


def done(caller: object, note: str) -> ToCaller:
    return ToCaller(caller, Done(note))


def codes(out: list[Instruction]) -> dict[object, str]:
    """Whom of the clients and callers these instructions tell about an error, and which."""
    told: dict[object, str] = {}
    for one in out:
        if isinstance(one, ToClient) and isinstance(one.message, Failed):
            told[one.message.request] = one.message.error["code"]
        elif isinstance(one, ToCaller) and not isinstance(one.message, Done):
            told[one.caller] = one.message.error["code"]
    return told
