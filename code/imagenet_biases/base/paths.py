"""Where the project's files are, in a checkout and in an installed package.

SCRIPTS: the folder of eval_*.py; SHIPPED: what comes with the project (models/, raw-data/); PUBLISHED: the study's
table; HOME: the user's models/, raw-data/ and figures/, in the checkout or else in the working directory.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = not (_PACKAGE.parent / "eval_all.py").exists()
SCRIPTS = _PACKAGE / "scripts" if INSTALLED else _PACKAGE.parent
SHIPPED = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parents[1]
HOME = Path.cwd() if INSTALLED else SHIPPED
RAW_DATA = SHIPPED / "raw-data"
PUBLISHED = RAW_DATA / "benchmark.csv"
