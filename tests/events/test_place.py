from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamd.errors import ConfigError
from streamd.events.place import StateDir, default_state_dir, file_system, owner

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:25 / /srv rw,relatime - nfs4 host:/export rw
31 30 8:2 / /srv/local\040disk rw - xfs /dev/sdb1 rw
32 21 0:30 / /srv-not rw - tmpfs none rw
33 21 0:31 / /over rw - tmpfs none rw
34 21 0:32 / /over rw - cifs //host/share rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/streamd", "ext4"), ("/srv", "nfs4"), ("/srv/x", "nfs4"), ("/srv/local disk/x", "xfs"),
        ("/srv-not", "tmpfs"), ("/over/x", "cifs"), ("/", "ext4"),
    ],
)  # fmt: skip
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS) == kind


def test_the_real_mounts_are_read(tmp_path: Path) -> None:
    told = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", tmp_path], capture_output=True, text=True).stdout.strip()
    assert file_system(tmp_path) == told != ""


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamd.events.place.file_system", lambda path: "nfs4")
    with pytest.raises(ConfigError, match=r"network file system \(nfs4\).*local disk"):
        StateDir(tmp_path)


def test_the_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    StateDir(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"state_dir {tmp_path}/file/x: cannot be created: Not a directory"):
        StateDir(tmp_path / "file" / "x")


HOLD = """
import sys, time
from pathlib import Path
from streamd.events.place import StateDir
state = StateDir(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_owner_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by process {process.pid}; stop it"):
            StateDir(tmp_path)
        assert owner(tmp_path) == process.pid
    finally:
        process.kill()
        process.communicate()
    state = StateDir(tmp_path)  # kill -9 lets go of it
    assert owner(tmp_path) == os.getpid()
    state.close()
    assert owner(tmp_path) is None


def test_the_default_is_the_instance_s_folder_in_systemd_s() -> None:
    assert default_state_dir("yard", {"STATE_DIRECTORY": "/var/lib/streamd:/x"}) == Path("/var/lib/streamd/yard")
    assert default_state_dir("yard", {}) is None
