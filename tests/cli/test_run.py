"""`streamd run`: its own end."""

import subprocess
import sys

# Signals that arrive while the interpreter ends, when handlers written in Python are gone already.
_PROGRAM = """
import os, signal, sys
from streamd.cli.run import ignore_signals

NUMBERS = tuple(map(int, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)))

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=NUMBERS):
        for number in numbers:
            kill(pid, number)

for number in NUMBERS:
    signal.signal(number, lambda *_: None)
ignore_signals()
signal.late = Late()
"""


def test_a_signal_after_the_drain_does_not_change_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
