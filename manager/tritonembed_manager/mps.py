"""NVIDIA's Multi-Process Service: replicas that share a GPU run on it at the same moment instead of taking turns.

Three replicas of BERT-base on an H200 serve 1.09 times the tokens (perf/README.md). A fault in one of its clients ends
all of them, so each server has a daemon of its own: as it is, a server with a dead replica is started again as a whole.
"""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tritonembed_manager.model_config import ModelConfig, share_a_gpu

DAEMON = "nvidia-cuda-mps-control"
VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"
USUAL_SOCKET = Path("/tmp/nvidia-mps/control")
"""Of a daemon that was started without that variable; CUDA finds it by itself."""

_SHIM = Path(__file__).with_name("mps_shim.py")


def with_mps(
    command: Sequence[str], configs: Iterable[ModelConfig], environment: Mapping[str, str], folder: Path
) -> Sequence[str]:
    """A server's command line; with a daemon for it where its replicas share a GPU and there is one to start.

    configs: the models' configurations. environment: the server's; with the variable in it the user has chosen.
    folder: the server's own.
    """
    daemon = shutil.which(DAEMON, path=environment.get("PATH"))
    if daemon is None or VARIABLE in environment or USUAL_SOCKET.exists() or not share_a_gpu(configs):
        return command
    return [sys.executable, "-I", str(_SHIM), str(folder / "mps"), daemon, *command]
