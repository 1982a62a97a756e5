"""The versions of one model, and the choice of a version for a request.

Each version has servers of its own, and so a dispatcher with its own queue, windows and failover. A request goes to one
of the versions that can serve now, by their weights (smooth weighted round robin, as in nginx). If it asks for an
embedding space, it goes to the version with that space. All messages of a request go to one version, because vectors of
two versions can't be compared.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import grpc

from tritonembed_manager.router.data.dispatcher import TritonDispatcher
from tritonembed_manager.router.data.request import ForwardedRequest
from tritonembed_manager.router.data.spaces import no_such_space
from tritonembed_manager.router.interfaces import Admission, DispatchError, ServerView
from tritonembed_protocol.served import ServedModel

REPLACED = "the model was replaced while it worked on the request; send it again"
_UNNAMED = ""


@dataclass(eq=False)
class Version:
    """dispatcher: of its servers. weight: in percent. due: how far it is behind its weight, in percent."""

    name: str
    dispatcher: TritonDispatcher
    weight: float = 100.0
    due: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether one of its servers can receive requests."""
        return bool(self.dispatcher.pool.usable())

    def has(self, space: str) -> bool:
        """Whether its vectors are known to be of this space."""
        return any(view.space == space for view in self.dispatcher.pool.views())


class ModelVersions:
    """make: a dispatcher for a version. changed: called when servers that get requests may have changed."""

    def __init__(
        self,
        served: ServedModel,
        make: Callable[[ServedModel], TritonDispatcher],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.served = served
        self._make = make
        self._changed = changed
        self._leaving: list[Version] = []
        """Versions without servers that still have requests."""
        # Requests may arrive before the first servers.
        self._versions = {_UNNAMED: self._new(_UNNAMED)}

    @property
    def dispatchers(self) -> list[TritonDispatcher]:
        """The dispatchers of all versions, also of versions that finish."""
        return [version.dispatcher for version in (*self._versions.values(), *self._leaving)]

    @property
    def is_usable(self) -> bool:
        """Whether a server of any version can receive requests."""
        return any(version.is_usable for version in self._versions.values())

    @property
    def is_split(self) -> bool:
        """Whether there are several versions."""
        return len(self._versions) > 1

    def views(self) -> list[ServerView]:
        """All servers of the model, as the parent last reported them."""
        return [view for version in self._versions.values() for view in version.dispatcher.servers()]

    def serving(self) -> list[str]:
        """Ids of the servers that receive requests."""
        return [id for version in self._versions.values() for id in version.dispatcher.serving()]

    def update(self, views: Sequence[ServerView]) -> None:
        """Take over the parent's views of the model's servers."""
        of_versions: dict[str, list[ServerView]] = {}
        for view in views:
            of_versions.setdefault(view.version, []).append(view)
        before = self._versions
        if of_versions:
            self._versions = {name: before.pop(name) if name in before else self._new(name) for name in of_versions}
        else:
            # The last version stays, for requests that still arrive.
            self._versions = {name: before.pop(name) for name in list(before)[-1:]}
        for name, version in self._versions.items():
            own = of_versions.get(name, [])
            version.weight = own[0].weight if own else version.weight
            version.dispatcher.pool.update(own)
        for version in before.values():
            version.dispatcher.pool.update([])
        self._leaving = [version for version in (*self._leaving, *before.values()) if not version.dispatcher.is_idle]
        self._wake()

    def is_full(self) -> bool:
        """Whether it has as many requests as its servers may have, even if they can take none now.

        So a flood of requests for a model that is down or still loading leaves places for other models.
        """
        dispatchers = self.dispatchers
        return sum(one.requests for one in dispatchers) >= sum(one.pool.most for one in dispatchers)

    def choose(self, admitted: Admission, space: str = "", tried: Collection[Version] = ()) -> Version:
        """The version for a request's next message.

        tried: versions that could not take it. space: the requested embedding space; empty for any. Raises
        DispatchError if no version has it, or if the version of earlier messages is gone.
        """
        if admitted.version is not None and not tried:
            if (pinned := self._versions.get(admitted.version)) is not None:
                return pinned
            if admitted.messages > 0:
                raise DispatchError(grpc.StatusCode.UNAVAILABLE, REPLACED)
        if not self.is_split:
            found = next(iter(self._versions.values()))
        else:
            found = self._with_space(space) if space else self._by_weight(tried)
        admitted.version = found.name
        return found

    def heaviest(self) -> TritonDispatcher:
        """The dispatcher for calls that are about the model as a whole."""
        return max(self._versions.values(), key=lambda version: (version.is_usable, version.weight)).dispatcher

    def _by_weight(self, tried: Collection[Version]) -> Version:
        left = [version for version in self._versions.values() if version not in tried]
        chosen = [version for version in left if version.weight > 0] or left
        chosen = [version for version in chosen if version.is_usable] or chosen
        if not chosen:
            raise DispatchError(grpc.StatusCode.UNAVAILABLE, REPLACED)
        for version in chosen:
            version.due += version.weight
        found = max(chosen, key=lambda version: version.due)
        found.due -= sum(version.weight for version in chosen)
        return found

    def _with_space(self, space: str) -> Version:
        having = [version for version in self._versions.values() if version.has(space)]
        if not having:
            raise no_such_space(view.space for view in self.views())
        return max(having, key=lambda version: (version.is_usable, version.weight))

    def _new(self, name: str) -> Version:
        version = Version(name, self._make(self.served))
        version.dispatcher.can_move = lambda request: self._can_move(request, version)
        version.dispatcher.pool.changed = self._pool_changed
        return version

    def _can_move(self, request: ForwardedRequest, version: Version) -> bool:
        """Whether a request that waits for a version can go to another: none of its vectors has been made yet."""
        if request.admitted.messages > 1 or request.envelope.space or request.breaks:
            return False
        return any(other.is_usable and other.weight > 0 for other in self._versions.values() if other is not version)

    def _pool_changed(self) -> None:
        self._wake()
        self._changed()

    def _wake(self) -> None:
        """Let requests that wait for a version without servers look for another."""
        for version in (*self._versions.values(), *self._leaving):
            if not version.is_usable:
                version.dispatcher.pool.wake()
