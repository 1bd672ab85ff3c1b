"""Gives reduced cases the answers of a later version of the library.

    python recheck.py --cases DIR

Some versions round otherwise than their successors, or changed their mind. For
the same model files the answer of the installed version then replaces the one of
the version that wrote them. What the writer answered stays beside it:
case.json lists it under "writer_outputs", and "outputs_by" tells whose answers
"outputs" are. Cases that the installed version cannot read stay as they are.
"""

import argparse
import json
import os
import warnings

import numpy as np

from common import Skip, write_json


class Xgboost:
    """Answers of the installed XGBoost."""

    def __init__(self):
        import xgboost

        self.library = xgboost
        self.name = "xgboost " + xgboost.__version__
        self.release = tuple(int(part) for part in xgboost.__version__.split(".")[:2])

    def readable(self, folder, case):
        """The first model file that this version can read."""
        for name in case["files"]:
            if name.endswith(".bst"):
                if self.release < (3, 1):
                    return name
            elif name.endswith(".json"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    old = case["output"] == "vector" and "leaf_weights" not in file.read()
                # Reading an older vector leaf ends the process in 3.2 and later.
                if not (old and self.release >= (3, 2)):
                    return name
        raise Skip("not readable")

    def predict(self, folder, case, x):
        """This version's outputs by kind."""
        path = os.path.join(folder, self.readable(folder, case))
        booster = self.library.Booster(params={"nthread": 1}, model_file=path)
        keys = {"feature_names": booster.feature_names}
        if case["categorical"]:
            keys["enable_categorical"] = True
            keys["feature_types"] = [
                "c" if f in case["categorical"] else "q" for f in range(case["features"])]
        data = self.library.DMatrix(x, **keys)
        return {
            "value": booster.predict(data),
            "margin": booster.predict(data, output_margin=True),
        }


class Lightgbm:
    """Answers of the installed LightGBM."""

    def __init__(self):
        import lightgbm

        self.library = lightgbm
        self.name = "lightgbm " + lightgbm.__version__

    def predict(self, folder, case, x):
        """This version's outputs by kind."""
        path = os.path.join(folder, case["files"][0])
        booster = self.library.Booster(model_file=path)
        return {
            "value": booster.predict(x),
            "margin": booster.predict(x, raw_score=True),
        }


def recheck(folder, library):
    """Compares one case; returns whether its answers were replaced."""
    path = os.path.join(folder, "case.json")
    with open(path, encoding="utf-8") as file:
        case = json.load(file)
    dtype = {"f32": "<f4", "f64": "<f8"}[case["x_dtype"]]
    x = np.fromfile(os.path.join(folder, "x.bin"), dtype)
    fresh = library.predict(folder, case, x.reshape(case["rows"], case["features"]))
    differs = False
    for entry in case["outputs"]:
        with open(os.path.join(folder, entry["file"]), "rb") as file:
            differs |= file.read() != fresh[entry["kind"]].astype(dtype).tobytes()
    if not differs:
        return False
    kept = []
    for entry in case["outputs"]:
        file = os.path.join(folder, entry["file"])
        writer = entry["kind"] + ".writer.bin"
        kept.append(dict(entry, file=writer))
        if "writer_outputs" not in case:
            os.replace(file, os.path.join(folder, writer))
        fresh[entry["kind"]].astype(dtype).tofile(file)
    case.setdefault("writer_outputs", kept)
    case["outputs_by"] = library.name
    write_json(path, case)
    return True


def version_key(text):
    """A version as numbers that compare."""
    return [int(part) for part in text.split(".")[:3] if part.isdigit()]


def main():
    """Rechecks all cases of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", required=True, help="a folder that sweep.py wrote")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with open(os.path.join(options.cases, "sweep.json"), encoding="utf-8") as file:
        sweep = json.load(file)
    library = {"xgboost": Xgboost, "lightgbm": Lightgbm}[sweep["library"]]()
    if version_key(sweep["version"]) > version_key(library.library.__version__):
        parser.error("the installed version is older than the one that wrote the cases")
    for name in sweep["cases"]:
        try:
            if recheck(os.path.join(options.cases, name), library):
                print(f"{name}: answers of {library.name}")
        except Exception as error:  # noqa: BLE001 - each library has its own types
            print(f"{name}: left as it is: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
