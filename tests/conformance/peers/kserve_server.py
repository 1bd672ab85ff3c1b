"""KServe's ModelServer over the XGBoost models of a repository, predicting as KServe's xgbserver does.

python kserve_server.py REPOSITORY HTTP_PORT GRPC_PORT
"""

import pathlib
import sys

import kserve
import xgboost
from kserve.errors import InferenceError
from kserve.utils.utils import get_predict_input, get_predict_response


class XGBoostModel(kserve.Model):
    def __init__(self, name, file):
        super().__init__(name)
        self.file = file

    def load(self):
        self.booster = xgboost.Booster({"nthread": 1})
        self.booster.load_model(self.file)
        self.ready = True
        return True

    def predict(self, payload, headers=None, response_headers=None):
        try:
            matrix = xgboost.DMatrix(get_predict_input(payload), nthread=1)
            return get_predict_response(payload, self.booster.predict(matrix), self.name)
        except Exception as error:
            raise InferenceError(str(error)) from error


class Repository(kserve.ModelRepository):
    """Loads `NAME/1/*` when asked to, which is what the load call of protocol v2 needs."""

    async def load(self, name):
        folder = pathlib.Path(self.models_dir) / name / "1"
        if not folder.is_dir():
            return False
        model = XGBoostModel(name, next(folder.iterdir()))
        if model.load():
            self.update(model)
        return model.ready


def main(folder, http_port, grpc_port):
    models = []
    for model in sorted(pathlib.Path(folder).iterdir()):
        models.append(XGBoostModel(model.name, next((model / "1").iterdir())))
        models[-1].load()
    server = kserve.ModelServer(
        http_port=int(http_port), grpc_port=int(grpc_port), registered_models=Repository(folder), workers=1
    )
    server.start(models)


if __name__ == "__main__":
    main(*sys.argv[1:])
