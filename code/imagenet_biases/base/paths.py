"""Where the project's own files lie, in a checkout and where the package was installed without one.

SCRIPTS: the folder of eval_*.py; SHIPPED: what comes with the project (models/, raw-data/); HOME: where a user's own
things are kept (models/, raw-data/, figures/): the checkout, else the working directory.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = not (_PACKAGE.parent / "eval_all.py").exists()
SCRIPTS = _PACKAGE / "scripts" if INSTALLED else _PACKAGE.parent
SHIPPED = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parents[1]
HOME = Path.cwd() if INSTALLED else SHIPPED
