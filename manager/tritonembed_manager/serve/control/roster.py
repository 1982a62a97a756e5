"""The servers and how each of them stands. No waiting and no network here: news comes in, states come out."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tritonembed_manager.serve.control.fingerprint import Agreement, Vectors
from tritonembed_manager.serve.control.logs import log, warn
from tritonembed_manager.serve.control.probe import ProbeError
from tritonembed_manager.serve.control.restarts import RestartLimits, Restarts
from tritonembed_manager.serve.model import ServerState, ServerView

SUSPICION_LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=1.0, longest_delay=30.0)
"""One suspicion that a check does not confirm costs nothing; who is suspected over and over stays out longer."""

_DEAD_STUB = "stub"


@dataclass
class Member:
    """A server. `generation` counts its lives, so that an answer of an earlier one is not taken for news."""

    id: str
    slot: int
    address: str
    http_address: str | None
    metrics_address: str | None
    launched: bool
    replicas: int = 1
    state: ServerState = ServerState.STARTING
    why: str = "not asked yet"
    since: float = 0.0
    restarts: int = 0
    generation: int = 0
    failures: int = 0
    """Checks in a row that failed."""
    out_until: float = 0.0
    suspicions: Restarts = field(default_factory=lambda: Restarts(SUSPICION_LIMITS))

    def view(self) -> ServerView:
        """As workers see it."""
        return ServerView(
            id=self.id,
            slot=self.slot,
            address=self.address,
            http_address=self.http_address,
            metrics_address=self.metrics_address,
            state=self.state,
            launched=self.launched,
            restarts=self.restarts,
            replicas=self.replicas,
            why=self.why,
        )


class Roster:
    """Every server by its id, in the order they came.

    changed: called whenever a view is another one than before. busy: whether a slot of the load table is not empty.
    """

    def __init__(
        self,
        slots: int,
        clock: Callable[[], float],
        changed: Callable[[], None],
        busy: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.members: dict[str, Member] = {}
        self._slots = slots
        self._clock = clock
        self._changed = changed
        self._busy = busy
        self._agreement = Agreement()
        self._awaited: set[str] = set()
        self._first_answers: dict[str, Vectors] = {}

    def views(self) -> list[ServerView]:
        """All servers."""
        return [member.view() for member in self.members.values()]

    def ready(self) -> list[Member]:
        """Those that get requests."""
        return [member for member in self.members.values() if member.state is ServerState.READY]

    def add(
        self,
        id: str,
        address: str,
        *,
        http_address: str | None = None,
        metrics_address: str | None = None,
        launched: bool = False,
        replicas: int = 1,
        awaited: bool = False,
    ) -> Member:
        """A new server. awaited: it is one of those whose first answers are compared before any of them is taken.

        Raises ValueError when there is no slot left.
        """
        used = {member.slot for member in self.members.values()}
        slot = next((slot for slot in range(self._slots) if slot not in used and not self._busy(slot)), None)
        if slot is None:
            raise ValueError(f"no more than {self._slots} servers at a time")
        member = Member(id, slot, address, http_address, metrics_address, launched, replicas, since=self._clock())
        self.members[id] = member
        if awaited:
            self._awaited.add(id)
        self._changed()
        return member

    def remove(self, id: str) -> None:
        """Forget a server that nothing is sent to any more."""
        del self.members[id]
        self._agreement.leave([id])
        self._first_answers.pop(id, None)
        self._settle_without(id)
        self._changed()

    def set_state(self, member: Member, state: ServerState, why: str = "") -> None:
        """Where it stands from now on."""
        if (member.state, member.why) == (state, why):
            return
        if member.state is not state:
            member.since = self._clock()
            say = log if state in (ServerState.READY, ServerState.STARTING, ServerState.DRAINING) else warn
            say(f"server_{state.value}", f"{state.value}{f': {why}' if why else ''}", server=member.id)
        member.state, member.why = state, why
        self._changed()

    def answered(self, member: Member, vectors: Vectors) -> None:
        """It gave vectors for the fixed sentences."""
        member.failures = 0
        if member.state in (ServerState.DRAINING, ServerState.FAILED):
            return
        if not self._agreement.settled:
            self._first_answers[member.id] = vectors
            self._settle_without(member.id)
            return
        self._judge(member, vectors)

    def failed(self, member: Member, error: ProbeError) -> None:
        """It gave none."""
        member.failures += 1
        if member.launched and member.state is ServerState.UNHEALTHY:
            # Why its process is gone tells more than that it does not answer.
            pass
        elif member.state in (ServerState.READY, ServerState.REFUSED, ServerState.UNHEALTHY):
            self.set_state(member, ServerState.UNHEALTHY, error.why)
        elif member.state is ServerState.STARTING:
            # A launched server takes its time to start; one that is attached should be there.
            self.set_state(member, ServerState.STARTING if member.launched else ServerState.UNHEALTHY, error.why)
        self._settle_without(member.id)

    def suspected(self, member: Member, why: str) -> None:
        """A request met a broken connection or a dead stub there; a check follows.

        With a dead stub it is out until that check succeeds: Triton takes seconds to fail with each request, and the
        check may be lucky to meet another instance, so that a server suspected over and over stays out longer. A
        connection can break without the server: the check tells in no time, and nobody else has to suffer.
        """
        if member.state is not ServerState.READY or _DEAD_STUB not in why.lower():
            return
        now = self._clock()
        member.out_until = now + (member.suspicions.died(now) or 0.0)
        self.set_state(member, ServerState.UNHEALTHY, why)

    def down(self, member: Member, state: ServerState, why: str) -> None:
        """Its process is gone, or starts again: what its earlier life still answers does not count."""
        member.generation += 1
        member.failures = 0
        self.set_state(member, state, why)

    def _judge(self, member: Member, vectors: Vectors) -> None:
        refusal = self._agreement.judge(member.id, vectors)
        if refusal is not None:
            self.set_state(member, ServerState.REFUSED, refusal)
        elif self._clock() >= member.out_until:
            self.set_state(member, ServerState.READY)

    def _settle_without(self, id: str) -> None:
        self._awaited.discard(id)
        if self._awaited or not self._first_answers:
            return
        answers = {key: self._first_answers[key] for key in self.members if key in self._first_answers}
        self._first_answers.clear()
        self._agreement.settle(answers)
        for key, vectors in answers.items():
            self._judge(self.members[key], vectors)
