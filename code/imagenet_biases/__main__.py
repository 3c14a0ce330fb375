"""The scripts as one command where the package is installed: `imagenet-biases eval_spectral --model ...`."""

import runpy
import sys

from imagenet_biases.base.errors import UserError, exit_on_user_error, nearest
from imagenet_biases.base.paths import SCRIPTS


@exit_on_user_error
def main() -> int | None:
    """Run the script that the first argument names with the others."""
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    name, *words = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print("imagenet-biases SCRIPT [ARGUMENTS], and SCRIPT --help; the scripts: " + ", ".join(names))
        return 0 if name else 2
    name = name.removesuffix(".py")
    if name not in names:
        raise UserError(f"there is no script {name}; {nearest(name, names) or 'imagenet-biases --help lists them'}")
    sys.argv = [str(SCRIPTS / f"{name}.py"), *words]
    sys.path.insert(0, str(SCRIPTS))
    runpy.run_path(sys.argv[0], run_name="__main__")
    return None


if __name__ == "__main__":
    sys.exit(main())
