#!/usr/bin/env python3
"""Asks advisory services whether a release in requirements.lock is known to be vulnerable (pip-audit, of this Python).

A finding is a failure. If no service can be reached or knows a package, the package is listed as skipped, which is a
failure only with STREAMD_REQUIRE_AUDIT=1.

usage: audit.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
SERVICES = ("pypi", "osv")


def ask(service: str) -> list[dict[str, Any]] | None:
    """The result of pip-audit for each package; None if the service does not answer."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--disable-pip", "--require-hashes",
               "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (json.JSONDecodeError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: {service}: no answer: {reason[:200]}")
        return None


def verdict(answers: list[list[dict[str, Any]] | None], *, required: bool) -> tuple[int, list[str]]:
    """The exit code and what to print.

    Args:
        answers: answers of each service.
        required: whether a package that no service has audited is a failure.
    """
    audited: set[str] = set()
    named: set[str] = set()
    lines: list[str] = []
    for answer in answers:
        for package in answer or ():
            name = str(package["name"])
            named.add(name)
            if "skip_reason" in package:
                continue
            audited.add(name)
            for finding in package.get("vulns", ()):
                fixed = ", ".join(finding.get("fix_versions", ())) or "no release yet"
                line = f"audit: FOUND {finding['id']} in {name} {package['version']}; fixed in: {fixed}"
                lines += [] if line in lines else [line]
    failed = bool(lines)
    skipped = sorted(named - audited)
    if not named:
        lines.append("audit: SKIPPED: no advisory service can be reached from here; nothing was audited")
    elif skipped:
        lines.append(
            f"audit: SKIPPED {len(skipped)} of {len(named)}, for which no service answers: {', '.join(skipped)}"
        )
    lines.append(f"audit: {len(audited)} packages audited")
    return int(failed or (required and (bool(skipped) or not named))), lines


def main() -> int:
    """Audits the packages, and prints the result."""
    code, lines = verdict(list(map(ask, SERVICES)), required=os.environ.get("STREAMD_REQUIRE_AUDIT") == "1")
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
