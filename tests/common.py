"""What several tests share: the repository's folders, the shared data, running a script as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "code"
SHARED = ROOT.parent / "shared" / "data" if (ROOT.parent / "shared" / "data").is_dir() else None
needs_shared = pytest.mark.skipif(SHARED is None, reason="../shared/data is missing")


def script(name, *arguments, check=True, cwd=None, **environment):
    """Run code/NAME as a user does; return the CompletedProcess with its text. W&B stays off unless asked for."""
    command = [sys.executable, str(CODE / name), *map(str, arguments)]
    result = subprocess.run(
        command, cwd=cwd or ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
    return result
