"""What is written is whole or absent, and what killed processes leave behind goes."""

import os
import subprocess
import sys
import time

from common import CODE
from imagenet_biases.base.files import atomic, sweep

WRITER = """
import os, signal, sys
sys.path.insert(0, {code!r})
from imagenet_biases.base.files import atomic
with atomic({path!r}) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_removes_what_a_killed_one_was_writing(tmp_path):
    path = tmp_path / "set.parts" / "answers.npz"
    program = WRITER.format(code=str(CODE), path=str(path))
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode < 0
    (left,) = path.parent.iterdir()
    assert left.name.endswith(".tmp") and left.read_bytes() == b"half"
    with atomic(path) as file:  # this process lives, and is writing
        sweep(tmp_path)
        file.write(b"whole")
    assert [other.name for other in path.parent.iterdir()] == [path.name] and path.read_bytes() == b"whole"


def test_files_of_other_machines_go_after_a_day(tmp_path):
    other = tmp_path / ".answers.npz.0123abcd-1.x1y2z3w4.tmp"
    other.write_bytes(b"half")
    sweep(tmp_path)
    assert other.exists()
    os.utime(other, (0, time.time() - 90_000))
    sweep(tmp_path)
    assert not other.exists()
