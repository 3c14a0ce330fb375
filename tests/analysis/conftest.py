"""What several tests of the analysis share."""

import pytest
from filelock import FileLock

from common import SHARED, run
from imagenet_biases.results.table import PUBLISHED


@pytest.fixture(scope="session")
def study_figures(tmp_path_factory, worker_id):
    """The folder that plot_study.py makes of the published table, with people's trials where there are any.

    Made once for all test processes.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "study_figures"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            trials = [SHARED / "human_trials", SHARED / "cue_conflict_trials"] if SHARED else [base]
            run("plot_study.py", "--table", PUBLISHED, "--out", folder, "--trials", *trials, check=True)
            (folder / "done").touch()
    return folder
