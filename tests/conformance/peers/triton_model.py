"""The same booster as a model of Triton's Python backend: `input__0` in, `output__0` out, FP32."""

import os
import pathlib
import sys

# The backend's interpreter is isolated; it finds the packages through this.
sys.path.append(os.environ["CONFORMANCE_PACKAGES"])

import numpy as np  # noqa: E402
import triton_python_backend_utils as backend  # noqa: E402  (comes with the backend)
import xgboost  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(folder / "xgboost.json")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = backend.get_input_tensor_by_name(request, "input__0").as_numpy()
        values = self.booster.predict(xgboost.DMatrix(rows, nthread=1)).astype(np.float32)
        return backend.InferenceResponse([backend.Tensor("output__0", values)])
