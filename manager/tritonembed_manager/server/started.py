"""A tritonserver that this process starts: waits until it infers, and reports why it broke."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from tritonembed_manager.errors import ManagerError, StartError
from tritonembed_manager.server.life import Cause, Life
from tritonembed_manager.server.probe import GrpcProbe, ProbeError
from tritonembed_manager.server.process import ServerProcess
from tritonembed_manager.server.settings import ServerSettings
from tritonembed_protocol.served import FIRST_MODEL, ServedModel

_RETRY_S = 0.1
_AFTER_A_REFUSAL_S = 1.0
_REFUSALS = 5
"""A loaded model that refuses a valid sentence this many times is taken to be broken."""
_ATTEMPT_S = 60.0
_QUESTION_S = 1.0
_LOOK_EVERY_S = 0.5


class StartedServer:
    """One server, from its start until it ends or breaks. An async context manager, at whose end nothing is left.

    start: starts the server's process, in the main thread. models: those that it serves.
    show: receives the log lines that are worth showing.
    doing: receives the current step of the start.
    """

    def __init__(
        self,
        settings: ServerSettings,
        start: Callable[[], ServerProcess],
        *,
        models: Sequence[ServedModel] = (FIRST_MODEL,),
        show: Callable[[str], None] = lambda _: None,
        doing: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._models = models
        self._start = start
        self._show = show
        self._doing = doing
        self._no_answer = "it does not listen yet"
        self.is_ready = False

    async def __aenter__(self) -> "StartedServer":
        self.began = time.monotonic()
        self._probes = [GrpcProbe(self._settings.local_address, model=model) for model in self._models]
        self._life = Life(
            self._start(),
            show=self._show,
            doing=self._doing,
            is_missed=None if self._settings.model_control_mode == "none" else self._is_missed,
            look_every=_LOOK_EVERY_S,
            everything=self._settings.log_verbose,
        )
        self.over = asyncio.create_task(self._watch())
        """Raises ManagerError if the server broke; returns once a server has ended that was asked to."""
        self._too_late = asyncio.get_running_loop().call_later(self._settings.startup_timeout, self._check_startup)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._too_late.cancel()
        self.over.cancel()
        await asyncio.gather(self.over, return_exceptions=True)
        for probe in self._probes:
            await probe.close()
        await self._life.end()

    async def until_ready(self) -> None:
        """Wait until an inference has succeeded. Raises ManagerError if the server breaks or refuses."""
        asking = asyncio.create_task(self._until_it_infers())
        try:
            await asyncio.wait({asking, self.over}, return_when=asyncio.FIRST_COMPLETED)
            if self._life.cause is None:
                asking.result()
                self._life.became_ready()
            if self._life.cause is not None:
                await self.over
            self.is_ready = True
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end."""
        return self._life.terminating

    def terminate(self) -> None:
        """Ask the server to finish what is in flight and end."""
        self._life.terminate()

    async def _watch(self) -> None:
        why = await self._life.until_over()
        if self._life.terminating:
            return
        cause = self._life.cause
        if not self.is_ready and cause in (Cause.STUB, Cause.HUNG, Cause.OTHER):
            self._life.show_held_back()
        if self._life.our_reason is not None:
            raise StartError(f"{why} (--log-verbose shows more)")
        if cause is Cause.EXIT:
            more = f": {self._life.last_words()}" if self.is_ready else " (--log-verbose shows more)"
            raise ManagerError(why + more)
        raise ManagerError(f"{why}: the server is stopped" if cause is Cause.STUB else why)

    async def _until_it_infers(self) -> None:
        for probe, model in zip(self._probes, self._models, strict=True):
            await self._until_a_model_infers(probe, "" if len(self._models) == 1 else f" of the model {model.name}")

    async def _until_a_model_infers(self, probe: GrpcProbe, which: str) -> None:
        refusals = 0
        while True:
            try:
                return await probe.infers(_ATTEMPT_S)
            except ProbeError as error:
                refusals = refusals + 1 if error.answered else 0
                if error.answered or error.timed_out:
                    self._no_answer = error.why
                if refusals == _REFUSALS:
                    raise ManagerError(f"the server started, but an inference{which} fails: {error.why}") from None
                await asyncio.sleep(_AFTER_A_REFUSAL_S if refusals else _RETRY_S)

    def _check_startup(self) -> None:
        if not self.is_ready:
            limit = f"{self._settings.startup_timeout:g} s ({self._settings.startup_limit})"
            self._life.broken(f"not ready after {limit}: {self._no_answer}")

    async def _is_missed(self, model: str, running: int) -> bool:
        """Whether a model should have more than `running` instances; True if the server does not answer.

        Under explicit and poll control, a stub also ends if its model is unloaded or replaced.
        """
        try:
            wanted = await self._probes[0].instances(model, _QUESTION_S)
        except ProbeError:
            return True
        return wanted is not None and running < wanted
