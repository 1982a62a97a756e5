import subprocess
import sys
from importlib.resources import files

MODULES = "framing limits policies printable served space status tls types"
IMPORTED = """
import sys
import numpy
theirs = {name.partition(".")[0] for name in sys.modules}
import importlib
for module in %r.split():
    importlib.import_module(f"tritonembed_protocol.{module}")
ours = {name.partition(".")[0] for name in sys.modules} - theirs - set(sys.stdlib_module_names)
print(*sorted(ours))
"""


def test_the_protocol_needs_numpy_and_nothing_else():
    run = subprocess.run([sys.executable, "-c", IMPORTED % MODULES], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["tritonembed_protocol"]


def test_every_module_is_checked():
    found = {
        path.name.removesuffix(".py") for path in files("tritonembed_protocol").iterdir() if path.name.endswith(".py")
    }
    assert found - {"__init__"} == set(MODULES.split())


def test_the_package_is_marked_as_typed():
    assert files("tritonembed_protocol").joinpath("py.typed").is_file()
