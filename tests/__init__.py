import os
import sys

# Tests start hundreds of processes: each would compile streamd again, and each worker of pytest-xdist all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
