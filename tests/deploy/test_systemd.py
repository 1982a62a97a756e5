"""The systemd unit is valid and hardened, and fits the manager's times. systemd itself does not run here."""

import re
import subprocess
import sys
from pathlib import Path

from tests.deploy.charts import ROOT
from typer.main import get_command

from tritonembed_manager.commands.app import app
from tritonembed_manager.server.vllm_arguments import variable

FOLDER = ROOT / "deploy" / "systemd"
UNIT = (FOLDER / "tritonembed.service").read_text(encoding="utf-8")
PROGRAM = "/opt/tritonembed/bin/tritonembed-manager"


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return value


def default(option: str) -> float:
    (found,) = [one for one in get_command(app).commands["serve"].params if option in one.opts]
    return float(found.default)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True)


def test_systemd_finds_no_mistake_in_the_unit(tmp_path):
    # Its program is not installed here: another one takes its place.
    unit = tmp_path / "tritonembed.service"
    unit.write_text(UNIT.replace(PROGRAM, sys.executable))
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_calls_its_exposure_low(tmp_path):
    done = analyze("security", "--offline=yes", "--no-pager", "--threshold=20", FOLDER / "tritonembed.service")
    assert done.returncode == 0, done.stdout


def test_the_units_times_are_longer_than_the_managers():
    assert float(setting("TimeoutStartSec")) > default("--startup-timeout")
    assert float(setting("TimeoutStopSec")) > default("--drain-timeout") + default("--lame-duck")
    assert setting("KillMode") == "mixed"
    assert setting("Type") == "notify"


def test_its_settings_are_options_of_the_manager():
    known = {variable(option) for one in get_command(app).commands["serve"].params for option in one.opts}
    texts = (FOLDER / "tritonembed.env").read_text(encoding="utf-8") + setting("Environment").replace(" ", "\n")
    used = re.findall(r"^#? ?(TRITONEMBED_\w+)=", texts, re.MULTILINE)
    assert len(used) == 5
    assert set(used) <= known
    assert Path(setting("EnvironmentFile")).name == "tritonembed.env"
