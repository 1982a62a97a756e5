"""Has everything started, or is there no use in waiting?"""

from collections.abc import Mapping

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.serve.control.launched import LaunchedServer
from tritonembed_manager.serve.control.roster import Roster
from tritonembed_manager.serve.control.workers import WorkerPool
from tritonembed_manager.serve.model import ServerState

_TELLS_MORE = "(--log-verbose tells more)"


class StartJudge:
    """Looks at the servers and the workers until the manager can call itself ready."""

    def __init__(self, roster: Roster, launched: Mapping[str, LaunchedServer], workers: WorkerPool) -> None:
        self._roster = roster
        self._launched = launched
        self._workers = workers

    def started(self) -> bool:
        """Every worker listens, a server is ready, and each of the others has shown how it stands.

        Raises ManagerError when it can't come to that: no worker can listen, or no server that is launched starts.
        """
        if self._workers.why_not is not None:
            raise StartError(self._workers.why_not)
        if not self._roster.ready():
            self._raise_if_hopeless()
            return False
        return self._workers.ready and not any(self._is_starting(id) for id in self._roster.members)

    def why(self) -> str:
        """What is still missing, in one line."""
        if not self._workers.ready:
            return "a worker does not listen yet"
        reasons = [f"{member.id}: {member.why}" for member in self._roster.members.values() if member.why]
        return reasons[0] if reasons else "no server is known"

    def _is_starting(self, id: str) -> bool:
        if id in self._launched and self._launched[id].failed_first_start.is_set():
            return False
        return self._roster.members[id].state is ServerState.STARTING

    def _raise_if_hopeless(self) -> None:
        launched = list(self._launched.values())
        for server in launched:
            if server.our_reason is not None:
                raise StartError(f"{server.our_reason} {_TELLS_MORE}")
        if launched and all(server.failed_first_start.is_set() for server in launched):
            raise ManagerError(f"{launched[0].first_failure} {_TELLS_MORE}")
