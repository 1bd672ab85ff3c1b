"""Writes models and expected outputs with the original libraries.

    python sweep.py --library xgboost --out DIR [--reduced]

Every case is a folder with model files, raw inputs, raw outputs and case.json;
DIR/sweep.json lists the cases and, with the reason, those that the installed
version of the library could not make. The same version writes the same files.
"""

import argparse
import importlib
import os
import warnings

from common import write_json

MODULES = {"xgboost": "xgb_make", "lightgbm": "lgb_make"}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, choices=sorted(MODULES))
    parser.add_argument("--out", required=True, help="folder to write the cases to")
    parser.add_argument("--reduced", action="store_true",
                        help="few small cases, to be kept as fixtures")
    return parser.parse_args()


def main():
    """Runs the sweep of one library."""
    options = arguments()
    warnings.simplefilter("ignore")
    os.makedirs(options.out, exist_ok=True)
    maker = importlib.import_module(MODULES[options.library])
    made, skipped = maker.generate(options.out, options.reduced)
    write_json(os.path.join(options.out, "sweep.json"), {
        "library": options.library,
        "version": maker.VERSION,
        "reduced": options.reduced,
        "cases": made,
        "skipped": skipped,
    })
    print(f"{options.library} {maker.VERSION}: {len(made)} cases, {len(skipped)} skipped")


if __name__ == "__main__":
    main()
