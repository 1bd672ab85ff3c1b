"""The two client SDKs in one process.

tritonclient and kserve both register messages of protobuf package `inference`, with different fields, and protobuf's
default pool refuses the second. Giving tritonclient's generated code a pool of its own lets one test session use both.
"""

from google.protobuf import descriptor_pool

_default = descriptor_pool.Default
_tritons = descriptor_pool.DescriptorPool()
descriptor_pool.Default = lambda: _tritons
try:
    import tritonclient.grpc as triton_grpc
    import tritonclient.grpc.aio as triton_grpc_aio
    from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
finally:
    descriptor_pool.Default = _default

import kserve
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_pb2
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as kserve_pb2_grpc
from tritonclient.utils import InferenceServerException

__all__ = [
    "InferenceServerException",
    "kserve",
    "kserve_pb2",
    "kserve_pb2_grpc",
    "model_config_pb2",
    "service_pb2",
    "service_pb2_grpc",
    "triton_grpc",
    "triton_grpc_aio",
    "triton_http",
    "triton_http_aio",
]
