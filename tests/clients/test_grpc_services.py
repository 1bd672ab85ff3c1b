"""The services beside inference: grpc.health.v1 and server reflection."""

import threading

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVING = health_pb2.HealthCheckResponse.SERVING
INFERENCE = "inference.GRPCInferenceService"


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc) as each:
        yield each


def test_health_check(channel):
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
    assert health.Check(health_pb2.HealthCheckRequest(service=INFERENCE), timeout=10).status == SERVING


def test_health_of_an_unknown_service(channel):
    """Check says that there is none, and Watch waits for it: the protocol has it so."""
    health, asked = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service="no.Such")
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(asked, timeout=10)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert "no.Such" in refused.value.details()
    call = health.Watch(asked, timeout=10)
    assert next(call).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    call.cancel()


def test_health_watch(channel):
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(call).status == SERVING
    call.cancel()


def test_health_watch_ends_with_the_server(own_server):
    """A watcher must not hold the server up; it is told, or cut off."""
    seen = []
    with grpc.insecure_channel(own_server.grpc) as channel:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        seen.append(next(call).status)

        def watch():
            try:
                seen.extend(each.status for each in call)
            except grpc.RpcError:
                pass

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert own_server.stop() == 0
        watcher.join(10)
        assert not watcher.is_alive()
    assert seen[0] == SERVING
    assert SERVING not in seen[1:]


def test_reflection_lists_services(channel):
    services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {INFERENCE, "grpc.health.v1.Health"} <= services


def test_reflection_describes_inference(channel):
    """With the descriptors alone a client can make a request: what grpcurl does."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName(INFERENCE)
    methods = {method.name: method for method in service.methods}
    assert {"ModelInfer", "ServerReady", "RepositoryIndex", "ModelStatistics"} <= set(methods)
    fields = methods["ModelInfer"].input_type.fields_by_name
    assert fields["raw_input_contents"].number == 7


def test_reflection_v1(channel):
    """The v1 messages have the layout of v1alpha's."""
    ask = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (reply,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10)
    assert INFERENCE in {each.name for each in reply.list_services_response.service}
