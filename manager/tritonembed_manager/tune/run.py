"""`tritonembed-manager tune`: prepare, measure, write what won."""

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tritonembed_manager import repository
from tritonembed_manager.errors import StartError
from tritonembed_manager.machine import check_gpu
from tritonembed_manager.model_check import check_model
from tritonembed_manager.signals import SignalPipe
from tritonembed_manager.tritonserver import find_tritonserver
from tritonembed_manager.tune.child import wait
from tritonembed_manager.tune.measuring import RUNS, Workbench
from tritonembed_manager.tune.record import write_record
from tritonembed_manager.tune.report import Progress, Table, describe
from tritonembed_manager.tune.session import Session
from tritonembed_manager.tune.texts import RequestMaker
from tritonembed_manager.tune.tune_options import TuneOptions, make_plan

if TYPE_CHECKING:
    from tritonembed_engine.model.files import ModelFiles


def run_tune(options: TuneOptions) -> None:
    """Measure, write OUT and OUT/tune.json, and say what was decided.

    Raises StartError for what is wrong from the start, ManagerError when nothing works; OUT is then as it was.
    """
    if options.settings.device == "cuda":
        check_gpu("--device cuda")
    ends = time.monotonic() + options.budget_minutes * 60
    with SignalPipe() as signals, tempfile.TemporaryDirectory(prefix="tritonembed-tune-") as folder:
        find_tritonserver(options.server.tritonserver, Path(folder))
        files, default_batch_tokens = _model(options)
        plan = make_plan(options, files, default_batch_tokens)
        wait(signals, 0)
        progress = Progress()
        progress.begin("preparing the load", None)
        maker = RequestMaker(files)
        requests = {load: maker.requests("--load", load) for load in plan.loads}
        requests[plan.second] = maker.requests("--second-load", plan.second)
        wait(signals, 0)
        bench = Workbench(
            settings=options.settings,
            default_batch_tokens=default_batch_tokens,
            work=Path(folder),
            options=options.server,
            seconds=options.seconds,
            requests=requests,
            signals=signals,
        )
        title = f"{' '.join(map(str, plan.loads))}, {RUNS} runs of {options.seconds:g} s each"
        if plan.limited:
            title = f"The defaults, as far as the lists given allow: {plan.defaults}\n{title}"
        session = Session(plan, bench.measure, title, ends, Table(sys.stdout), progress)
        try:
            written, verdict = session.run()
        finally:
            progress.clear()
        repository.render(options.out, bench.rendering(written), force=options.force)
        write_record(options, plan, session.searched, session.checked, written, verdict)
    print(f"{verdict.sentence[0].upper()}{verdict.sentence[1:]}.")
    print(f"Written: {describe(written, plan.defaults)}")
    print(f"tritonserver --model-repository={options.out}")


def _model(options: TuneOptions) -> tuple["ModelFiles", int]:
    """The model's files, and the tokens a batch holds by default."""
    try:
        import tokenizers  # noqa: F401

        from tritonembed_engine.errors import ModelError
        from tritonembed_engine.loading import max_batch_tokens
        from tritonembed_engine.model.files import read_model_files
        from tritonembed_engine.settings import ModelSettings
    except ImportError as error:
        raise StartError(f"tune runs where the server does; {error.name} is not installed here") from None
    settings = options.settings
    model = settings.model, settings.vllm.get("revision"), settings.vllm.get("max_model_len")
    check_model(*model)
    try:
        files = read_model_files(*model)
    except ModelError as error:
        raise StartError(f"--model: {error}") from None
    return files, max_batch_tokens(ModelSettings(model=settings.model), files, settings.device)
