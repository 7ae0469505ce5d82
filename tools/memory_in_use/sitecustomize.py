"""On PYTHONPATH, with `tools`: Python imports this file at its start, also in the worker processes."""

import memory_log

memory_log.begin()
