"""The registry: all servers, their states, and whether their vectors agree. It never waits and never uses the network.

The vectors of fixed sentences are a server's fingerprint: they show its model, pooling and precision.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tritonembed_manager.router.control.restarts import RestartLimits, Restarts
from tritonembed_manager.router.interfaces import ServerState, ServerView
from tritonembed_manager.router.log import log, warn
from tritonembed_manager.server.probe import ProbeError, Vectors
from tritonembed_protocol.printable import printable
from tritonembed_protocol.served import FIRST_MODEL, ServedModel
from tritonembed_protocol.space import model_part

SAME = 0.999
"""Two vectors of a sentence count as the same if their cosine is at least this."""


def difference(ours: Vectors, theirs: Vectors) -> str | None:
    """How the vectors of `theirs` differ from `ours`, in a few words; None if they are the same.

    ours, theirs: (sentences, dimensions), a row per fixed sentence. The least cosine of two rows decides.
    """
    if ours.shape != theirs.shape:
        return f"its vectors have {theirs.shape[1]} dimensions instead of {ours.shape[1]}"
    if not ours.shape[1]:
        # A model without dense vectors: its embedding space alone can differ.
        return None
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    dots = np.einsum("ij,ij->i", ours.astype(np.float64), theirs)
    cosine = float(np.min(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)))
    # With NaN every comparison is false, so NaN counts as a difference here.
    return None if cosine >= SAME else f"its vectors differ (cosine {cosine:.4f}, at least {SAME} wanted)"


@dataclass(frozen=True)
class Fingerprint:
    """vectors: of the fixed sentences, (sentences, dimensions). space: their embedding space; empty if it is unknown.
    adapters: the digests of the server's adapters, by name.

    Two servers of one model may differ in the precision, as far as their vectors are the same. Two models may not,
    however close their vectors are.
    """

    vectors: Vectors
    space: str = ""
    adapters: Mapping[str, str] = field(default_factory=dict)

    def difference(self, theirs: "Fingerprint") -> str | None:
        """How `theirs` differs, in a few words; None if the vectors may be mixed."""
        spaces = self.space, theirs.space
        if all(spaces) and model_part(self.space) != model_part(theirs.space):
            return f"its vectors differ (embedding space {theirs.space} instead of {self.space})"
        for name in self.adapters.keys() & theirs.adapters.keys():
            if self.adapters[name] != theirs.adapters[name]:
                return f"its adapter {name} has other weights"
        return difference(self.vectors, theirs.vectors)


class Agreement:
    """The servers whose vectors agree.

    `settle` accepts the largest group of servers with equal vectors; of two groups of the same size, it accepts the
    group whose server was listed first. Later servers join if they agree. A server that has joined is compared with its
    own first answer. Once the last server of the group is no longer listed, the next server begins a new group.
    """

    def __init__(self) -> None:
        self._accepted: dict[str, Fingerprint] = {}
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether there is an accepted group."""
        return self._settled and bool(self._accepted)

    def settle(self, answers: Mapping[str, Fingerprint]) -> None:
        """Accept a group. answers: the first answers by server, in the order of the servers."""
        if not answers or self.settled:
            return
        groups = [
            [key for key, theirs in answers.items() if ours.difference(theirs) is None] for ours in answers.values()
        ]
        chosen = max(groups, key=len)
        self._accepted = {key: answers[key] for key in chosen}
        self._settled = True

    def judge(self, key: str, answer: Fingerprint) -> str | None:
        """The reason why this server may not join the group; None if it agrees, and then it has joined."""
        if key in self._accepted:
            found = self._accepted[key].difference(answer)
            return found and f"{found} from those it gave when it joined"
        for other, expected in self._accepted.items():
            found = expected.difference(answer)
            if found is not None:
                return f"{found} from those of {other}: another model, pooling or precision"
            break
        self._accepted[key] = answer
        self._settled = True
        return None

    def leave(self, keys: Iterable[str]) -> None:
        """Forget servers that are no longer listed."""
        for key in keys:
            self._accepted.pop(key, None)


SUSPICION_LIMITS = RestartLimits(limit=1_000_000, window=60.0, first_delay=1.0, longest_delay=30.0)
"""Seconds. After the first suspicion a server returns with its next good check; repeated suspicions keep it out
longer."""

_DEAD_STUB = "stub"
_DEAD = (ServerState.UNHEALTHY, ServerState.STARTING, ServerState.FAILED)
"""The states of a READY server after it died or stopped answering."""


@dataclass
class RegisteredServer:
    """A server. `generation` counts its lives, so that late answers of an earlier life are ignored."""

    id: str
    slot: int
    address: str
    http_address: str | None
    metrics_address: str | None
    launched: bool
    replicas: int = 1
    state: ServerState = ServerState.STARTING
    why: str = "not checked yet"
    since: float = 0.0
    restarts: int = 0
    deaths: int = 0
    """How often it died or stopped answering while READY."""
    ejected: str = ""
    """The reason why workers send it no requests until `ejected_until`, although its checks succeed."""
    ejected_until: float = 0.0
    generation: int = 0
    failures: int = 0
    """Failed checks in a row."""
    doing: str = ""
    """The current step of its start, a better reason than that it does not answer yet."""
    space: str = ""
    """The embedding space of its vectors; empty if it is not known."""
    quality: float | None = None
    """What int8 keeps of rankings (`tritonembed_protocol.space.QUALITY`), by its last check."""
    model: ServedModel = FIRST_MODEL
    """Each model of a server with several models is an upstream of its own."""
    version: str = ""
    """The model's version; empty for an attached server."""
    weight: float = 100.0
    """The share of the model's requests that the servers of its version get, in percent."""
    dimensions: int = 0
    """The number of its vectors' dimensions, by its last check."""
    max_length: int | None = None
    """Tokens of the longest text; None if it is not known."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """The digests of its adapters, by name."""
    out_until: float = 0.0
    suspicions: Restarts = field(default_factory=lambda: Restarts(SUSPICION_LIMITS))

    def view(self) -> ServerView:
        """The server as workers see it."""
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
            deaths=self.deaths,
            space=self.space,
            quantization_quality=self.quality,
            ensemble=self.model.name,
            dimensions=self.dimensions,
            max_length=self.max_length,
            version=self.version,
            weight=self.weight,
            adapters=self.adapters,
        )


def upstream_id(server: str, model: ServedModel) -> str:
    """The id of a model at a server: the server's, and for a further model `NAME@SERVER`."""
    return server if model.is_first else f"{model.name}@{server}"


class UpstreamRegistry:
    """All servers by id, in the order in which they were added.

    clock: seconds. changed: called whenever a view has changed. busy: whether requests are in flight at a slot of the
    load table.
    """

    def __init__(
        self,
        slots: int,
        clock: Callable[[], float],
        changed: Callable[[], None],
        busy: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.upstreams: dict[str, RegisteredServer] = {}
        self._slots = slots
        self._clock = clock
        self._changed = changed
        self._busy = busy
        self._agreements: defaultdict[tuple[str, str], Agreement] = defaultdict(Agreement)
        """The agreements, by model and version."""
        self._awaited: set[str] = set()
        self._first_answers: dict[str, Fingerprint] = {}

    def views(self) -> list[ServerView]:
        return [upstream.view() for upstream in self.upstreams.values()]

    def ready(self) -> list[RegisteredServer]:
        """Servers that get requests."""
        return [upstream for upstream in self.upstreams.values() if upstream.state is ServerState.READY]

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
        model: ServedModel = FIRST_MODEL,
        version: str = "",
        weight: float = 100.0,
    ) -> RegisteredServer:
        """Add a server. awaited: no server becomes READY before the first answers of all awaited servers are compared.

        Raises ValueError if no slot is free.
        """
        used = {upstream.slot for upstream in self.upstreams.values()}
        slot = next((slot for slot in range(self._slots) if slot not in used and not self._busy(slot)), None)
        if slot is None:
            raise ValueError(f"no more than {self._slots} servers at a time")
        upstream = RegisteredServer(
            id, slot, address, http_address, metrics_address, launched, replicas, since=self._clock()
        )
        upstream.model, upstream.version, upstream.weight = model, version, weight
        self.upstreams[id] = upstream
        if awaited:
            self._awaited.add(id)
        self._changed()
        return upstream

    def remove(self, id: str) -> None:
        """Forget a server that gets no requests any more."""
        self._agreement_of(self.upstreams.pop(id)).leave([id])
        self._first_answers.pop(id, None)
        self._settle_without(id)
        self._changed()

    def set_weight(self, upstream: RegisteredServer, weight: float) -> None:
        """Change the share of its model's requests that the server's version gets, in percent."""
        if upstream.weight != weight:
            upstream.weight = weight
            self._changed()

    def set_state(self, upstream: RegisteredServer, state: ServerState, why: str = "") -> None:
        """Change the server's state and the reason for it."""
        why = printable(why)
        if (upstream.state, upstream.why) == (state, why):
            return
        if upstream.state is ServerState.READY and state in _DEAD:
            upstream.deaths += 1
        if upstream.state is not state:
            upstream.since = self._clock()
            write = warn if state in (ServerState.UNHEALTHY, ServerState.REFUSED, ServerState.FAILED) else log
            write(f"server_{state.value}", f"{state.value}{f': {why}' if why else ''}", server=upstream.id)
        upstream.state, upstream.why = state, why
        self._changed()

    def answered(
        self, upstream: RegisteredServer, vectors: Vectors, space: str = "", quality: float | None = None
    ) -> None:
        """A check got vectors for the fixed sentences. space: their embedding space; empty if it is unknown.

        quality: as in `RegisteredServer`.
        """
        upstream.failures = 0
        dimensions = vectors.shape[1] if upstream.model.task == "embed" else 0
        if (upstream.space, upstream.quality, upstream.dimensions) != (space, quality, dimensions):
            upstream.space, upstream.quality, upstream.dimensions = space, quality, dimensions
            self._changed()
        answer = Fingerprint(vectors, space, upstream.adapters)
        if upstream.state in (ServerState.DRAINING, ServerState.FAILED, ServerState.UNLOADED):
            return
        if not self._agreement_of(upstream).settled:
            self._first_answers[upstream.id] = answer
            self._settle_without(upstream.id)
            return
        self._judge(upstream, answer)

    def failed(self, upstream: RegisteredServer, error: ProbeError) -> None:
        """A check failed."""
        upstream.failures += 1
        if upstream.launched and upstream.state is ServerState.UNHEALTHY:
            # Keep the reason why its process ended: it says more than a missing answer.
            pass
        elif upstream.state in (ServerState.READY, ServerState.REFUSED, ServerState.UNHEALTHY):
            self.set_state(upstream, ServerState.UNHEALTHY, str(error))
        elif upstream.state is ServerState.STARTING:
            # A launched server takes time to start; an attached server should already run.
            why = upstream.doing if upstream.launched and not error.answered else ""
            state = ServerState.STARTING if upstream.launched else ServerState.UNHEALTHY
            self.set_state(upstream, state, why or str(error))
        self._settle_without(upstream.id)

    def suspected(self, upstream: RegisteredServer, why: str) -> None:
        """A request met a broken connection or a dead stub at the server. A check must follow.

        A dead stub takes the server out until that check succeeds, because Triton takes seconds to fail each request.
        The check may meet another instance, which works. So a server that is suspected repeatedly stays out longer.
        A broken connection alone does not take it out, because the server may be well, and the check is fast.
        """
        if upstream.state is not ServerState.READY or _DEAD_STUB not in why.lower():
            return
        now = self._clock()
        upstream.out_until = now + (upstream.suspicions.died(now) or 0.0)
        self.set_state(upstream, ServerState.UNHEALTHY, why)

    def ejected(self, upstream: RegisteredServer, reason: str, seconds: float) -> None:
        """Workers send the server no requests for `seconds`, whatever its checks find."""
        upstream.ejected, upstream.ejected_until = reason, self._clock() + seconds

    def down(self, upstream: RegisteredServer, state: ServerState, why: str) -> None:
        """The server's process ended or restarts. Late answers of its earlier life are ignored."""
        upstream.generation += 1
        upstream.failures = 0
        self.set_state(upstream, state, why)

    def _agreement_of(self, upstream: RegisteredServer) -> Agreement:
        return self._agreements[upstream.model.name, upstream.version]

    def _judge(self, upstream: RegisteredServer, answer: Fingerprint) -> None:
        refusal = self._agreement_of(upstream).judge(upstream.id, answer)
        if refusal is not None:
            self.set_state(upstream, ServerState.REFUSED, refusal)
        elif self._clock() >= upstream.out_until:
            self.set_state(upstream, ServerState.READY)

    def _settle_without(self, id: str) -> None:
        self._awaited.discard(id)
        if self._awaited or not self._first_answers:
            return
        answers = {key: self._first_answers[key] for key in self.upstreams if key in self._first_answers}
        self._first_answers.clear()
        of_versions: defaultdict[tuple[str, str], dict[str, Fingerprint]] = defaultdict(dict)
        for key, answer in answers.items():
            of_versions[self.upstreams[key].model.name, self.upstreams[key].version][key] = answer
        for version, own in of_versions.items():
            self._agreements[version].settle(own)
        for key, answer in answers.items():
            self._judge(self.upstreams[key], answer)
