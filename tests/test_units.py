"""The systemd units: valid, hardened, and agreeing with the code about times and exit codes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streamd.config import Config
from streamd.errors import ConfigError, GateError, ModelError
from streamd.events.place import UNIT_FOLDER, default_state_dir
from streamd.runtime.recorder.place import config_name

UNITS = Path(__file__).resolve().parent.parent / "systemd"
TEXT = (UNITS / "streamd@.service").read_text()


def value(key: str) -> str:
    found = re.search(rf"^{key}=(.*)$", TEXT, re.MULTILINE)
    assert found, key
    return found.group(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with our units, systemd's own, and an executable where the unit expects one."""
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is not installed (apt-get install systemd)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    made = tmp_path_factory.mktemp("root")
    system = next(p for p in (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system")) if p.is_dir())
    shutil.copytree(system, made / "usr/lib/systemd/system", symlinks=True)
    (made / "etc/systemd/system").mkdir(parents=True)
    for unit in UNITS.glob("streamd*"):
        shutil.copy(unit, made / "etc/systemd/system")
    binary = made / "opt/streamd/bin/streamd"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return made


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


def test_systemd_finds_nothing_wrong(root: Path) -> None:
    done = analyze("verify", f"--root={root}", "streamd@yard.service", "streamd.target")
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "streamd" in line]
    version = int(analyze("--version").stdout.split()[1].split(".")[0])
    expected = [] if version >= 253 else ["Failed to parse service type, ignoring: notify-reload"]
    assert [line.split(": ", 1)[1] for line in ours] == expected


def test_exposure_is_low(root: Path) -> None:
    done = analyze("security", "--offline=true", f"--root={root}", "streamd@yard.service")
    found = re.search(r"exposure level.*?: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze does not rate units offline: {done.stderr.strip()[:100]}")
    assert float(found.group(1)) <= 2.0
    stated = re.search(r"exposure level of ([\d.]+)", (UNITS / "README.md").read_text())
    assert stated is not None
    assert float(stated.group(1)) == float(found.group(1)), "systemd/README.md states another figure"


def test_times_and_codes_agree_with_the_code() -> None:
    fields = Config.model_fields
    assert float(value("TimeoutStopSec")) > fields["drain_s"].default + 5
    assert float(value("WatchdogSec")) > fields["stall_s"].default + 5
    codes = {int(code) for code in value("RestartPreventExitStatus").split()}
    assert codes == {ConfigError.exit_code, ModelError.exit_code, GateError.exit_code}
    assert value("Type") == "notify"


def test_the_journal_has_a_folder_of_its_instance_in_the_unit_s_state_folder() -> None:
    folder = Path("/var/lib") / value("StateDirectory")
    assert folder == UNIT_FOLDER
    config = value("ExecStart").rsplit(" ", 1)[1].replace("%i", "yard")
    assert default_state_dir(config_name(config), {"STATE_DIRECTORY": str(folder)}) == UNIT_FOLDER / "yard"
    # Without a name, every instance has a user of its own, and a start takes the others' files away from them.
    assert value("DynamicUser") == "yes"
    assert value("User") == "streamd"


def test_the_documentation_of_the_unit_is_where_the_wheel_puts_it() -> None:
    """The program and its documents are below one prefix; pyproject.toml says which files go there."""
    prefix = value("ExecStart").partition("/bin/")[0]
    path = value("Documentation").removeprefix("file://")
    assert path.startswith(f"{prefix}/share/streamd/")
    assert (UNITS.parent / path.removeprefix(f"{prefix}/share/streamd/")).is_file()
