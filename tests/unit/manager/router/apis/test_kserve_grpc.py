"""Every method of inference.GRPCInferenceService, called by Triton's own client."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as tritonclient
from tests.fakes.data_plane import data_plane
from tests.fakes.triton import OPTIONS, infer_request, vector
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tritonembed_manager.router.apis import kserve_grpc
from tritonembed_manager.router.apis.kserve_grpc import add_kserve
from tritonembed_manager.router.interfaces import ServerState


@asynccontextmanager
async def endpoint(count=2, admin=False, names=None, **options):
    """A data plane behind a gRPC port. Gives the data plane and a stub for the port."""
    async with data_plane(count, **options) as plane:
        server = grpc.aio.server(options=OPTIONS)
        plane.serving = True
        add_kserve(server, plane.dispatcher, lambda: plane.serving, admin=admin, names=names)
        plane.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.port}", OPTIONS) as channel:
            yield plane, service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await server.stop(None)


async def test_tritonclient_infers():
    async with endpoint() as (plane, _):
        client = tritonclient.InferenceServerClient(f"127.0.0.1:{plane.port}")
        text = tritonclient.InferInput("text", [2, 1], "BYTES")
        text.set_data_from_numpy(np.array([[b"one"], [b"two"]], dtype=np.object_))
        answer = await client.infer("embedding", [text], request_id="7", client_timeout=10)
        found = [np.frombuffer(row, "<f4") for row in answer.as_numpy("embedding")[:, 0]]
        np.testing.assert_array_equal(found, [vector(b"one"), vector(b"two")])
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("embedding")
        assert not await client.is_model_ready("another")
        with pytest.raises(InferenceServerException, match="unknown model"):
            await client.get_model_config("another")
        assert (await client.get_server_metadata()).name == "triton"
        assert (await client.get_model_metadata("embedding")).platform == "ensemble"
        assert (await client.get_model_config("embedding")).config.max_batch_size == 1024
        assert [model.name for model in (await client.get_model_repository_index()).models] == ["embedding"]
        await client.close()


async def test_answers_beyond_four_megabytes_are_passed_on():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].dimensions = 2_000_000
        text = b"x" * 6_000_000
        answer = await stub.ModelInfer(infer_request(text), timeout=30)
        assert len(answer.raw_output_contents[0]) == 4 + 4 * 2_000_000
        assert len(plane.fakes[0].requests[0].raw_input_contents[0]) == 4 + len(text)


async def test_errors_keep_code_and_text():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].fail_first = 1
        plane.fakes[0].failure = (grpc.StatusCode.INVALID_ARGUMENT, "text: element 0 is not UTF-8")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(infer_request(b"text"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "text: element 0 is not UTF-8"


async def test_overload_has_the_time_of_a_retry():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].overloaded = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(infer_request(b"text"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


async def test_a_client_that_goes_away_frees_its_place():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].hang()
        call = stub.ModelInfer(infer_request(b"text"), timeout=30)
        await plane.fakes[0].wait_inside(1)
        call.cancel()
        await plane.fakes[0].wait_inside(0)
        assert plane.is_idle()


async def test_the_clients_deadline_is_the_servers():
    async with endpoint(1) as (plane, stub):
        await stub.ModelInfer(infer_request(b"text"), timeout=4)
        assert 3 < plane.fakes[0].time_left[0] < 4.1


async def test_a_stream_answers_in_order_and_an_error_fails_only_its_own_request():
    async with endpoint() as (_, stub):
        wrong = service_pb2.ModelInferRequest(model_name="embedding", id="wrong")
        requests = [infer_request(b"first"), wrong, infer_request(b"last")]
        requests[0].id = "first"
        answers = [answer async for answer in stub.ModelStreamInfer(iter(requests), timeout=10)]
        assert [answer.infer_response.id for answer in answers] == ["first", "wrong", ""]
        assert [bool(answer.error_message) for answer in answers] == [False, True, False]
        assert answers[2].infer_response.raw_output_contents[0][4:] == vector(b"last").tobytes()


async def test_a_stream_that_is_cancelled_leaves_nothing_behind():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].hang()
        call = stub.ModelStreamInfer(iter([infer_request(b"text")] * 5), timeout=30)
        await plane.fakes[0].wait_inside(5)
        call.cancel()
        await plane.fakes[0].wait_inside(0)
        assert plane.is_idle()


async def test_a_full_stream_that_is_cancelled_leaves_no_task_behind():
    async with endpoint(1, max_in_flight=1000, per_server=1000) as (plane, stub):
        plane.fakes[0].hang()
        call = stub.ModelStreamInfer(iter([infer_request(b"text")] * 300), timeout=30)
        while plane.fakes[0].inside < kserve_grpc._AT_ONCE:
            await asyncio.sleep(0)
        # The stream is read no further: its reader is waiting.
        assert _tasks_of_streams()
        call.cancel()
        await plane.fakes[0].wait_inside(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not _tasks_of_streams()
        assert plane.is_idle()


def _tasks_of_streams():
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("answers_in_order", "_answer"))]


async def test_statistics_are_those_of_all_ready_servers():
    async with endpoint(3) as (plane, stub):
        for count, fake in enumerate(plane.fakes, 1):
            for name in ("embedding", "embedder"):
                stats = fake.statistics.model_stats.add(name=name, version="1", inference_count=10 * count)
                stats.last_inference = 1000 - count
                stats.inference_stats.success.count, stats.inference_stats.success.ns = count, 5 * count
                stats.batch_stats.add(batch_size=4).compute_infer.count = count
                stats.batch_stats.add(batch_size=100 + count).compute_infer.count = 1
                stats.response_stats["0"].success.ns = count
        plane.report(2, ServerState.UNHEALTHY)
        answer = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
        assert [stats.name for stats in answer.model_stats] == ["embedding", "embedder"]
        for stats in answer.model_stats:
            assert (stats.version, stats.inference_count, stats.last_inference) == ("1", 30, 999)
            assert (stats.inference_stats.success.count, stats.inference_stats.success.ns) == (3, 15)
            batches = [(batch.batch_size, batch.compute_infer.count) for batch in stats.batch_stats]
            assert batches == [(4, 3), (101, 1), (102, 1)]
            assert stats.response_stats["0"].success.ns == 3


async def test_statistics_leave_out_a_server_that_has_just_died():
    async with endpoint(2) as (plane, stub):
        plane.fakes[1].statistics.model_stats.add(name="embedding", version="1", inference_count=7)
        await plane.fakes[0].crash()
        answer = await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
        assert answer.model_stats[0].inference_count == 7
        await plane.fakes[1].crash()
        with pytest.raises(grpc.aio.AioRpcError, match="the server broke"):
            await stub.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"])
async def test_changes_are_sent_to_all_servers(method):
    request = getattr(service_pb2, f"{method}Request")()
    if method == "TraceSetting":
        request.settings["trace_rate"].value.append("5")
    elif method == "LogSettings":
        request.settings["log_verbose_level"].uint32_param = 1
    else:
        request.model_name = "embedding"
    async with endpoint(3, admin=True) as (plane, stub):
        await getattr(stub, method)(request, timeout=10)
        assert [fake.calls for fake in plane.fakes] == [[method]] * 3


@pytest.mark.parametrize("method", ["TraceSetting", "LogSettings"])
async def test_settings_are_read_from_any_server_that_answers(method):
    async with endpoint(2) as (plane, stub):
        await plane.fakes[0].crash()
        await getattr(stub, method)(getattr(service_pb2, f"{method}Request")(), timeout=10)
        assert plane.fakes[1].calls == [method]


async def test_a_servers_own_refusal_to_load_models_is_passed_on():
    """Triton's status for it is the same as for a broken connection."""
    why = "explicit model load / unload is not allowed if polling is enabled"
    async with endpoint(1, admin=True) as (plane, stub):
        plane.fakes[0].repository_failure = (grpc.StatusCode.UNAVAILABLE, why)
        for call, request in (
            (stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest),
            (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=why):
                await call(request(model_name="embedding"), timeout=10)


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("what", ["Status", "Register", "Unregister"])
async def test_shared_memory_is_refused_with_the_reason(kind, what):
    async with endpoint(1) as (_, stub):
        name = f"{kind}SharedMemory{what}"
        with pytest.raises(grpc.aio.AioRpcError, match="this endpoint has several") as caught:
            await getattr(stub, name)(getattr(service_pb2, f"{name}Request")(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_method_of_the_service_exists():
    async with endpoint(1) as (_, stub):
        for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if not method.client_streaming:
                call = getattr(stub, method.name)(getattr(service_pb2, method.input_type.name)(), timeout=10)
                assert await call.details() != "Method not found!"


async def test_readiness_is_that_of_the_servers():
    async with endpoint(1) as (plane, stub):
        ask = service_pb2.ServerReadyRequest, service_pb2.ModelReadyRequest(name="embedding")

        async def ready():
            return (await stub.ServerReady(ask[0]())).ready, (await stub.ModelReady(ask[1])).ready

        assert await ready() == (True, True)
        plane.report(0, ServerState.STARTING)
        assert await ready() == (False, False)
        plane.report(0)
        plane.serving = False
        assert await ready() == (False, False)
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live


async def test_clients_do_not_notice_a_crash_under_load():
    async with endpoint(2) as (plane, stub):
        for fake in plane.fakes:
            fake.hang()
        calls = [asyncio.ensure_future(_answer(stub, b"%d" % number)) for number in range(64)]
        await plane.fakes[0].wait_inside(64)
        await plane.fakes[0].crash()
        plane.fakes[1].release()
        for number, answer in enumerate(await asyncio.gather(*calls)):
            assert answer.raw_output_contents[0][4:] == vector(b"%d" % number).tobytes()


async def _answer(stub, text):
    return await stub.ModelInfer(infer_request(text), timeout=30)


async def test_answers_name_the_embedding_space_in_metadata_and_parameters():
    async with endpoint(1) as (plane, stub):
        plane.fakes[0].space = "aa-float32"
        plane.report(0, space="aa-float32")
        call = stub.ModelInfer(infer_request(b"text"), timeout=10)
        answer = await call
        assert answer.parameters["embedding_space"].string_param == "aa-float32"
        assert dict(await call.trailing_metadata())["x-embedding-space"] == "aa-float32"
        requests = [infer_request(b"text"), infer_request(b"text", embedding_space="bb-float32")]
        right, wrong = [answer async for answer in stub.ModelStreamInfer(iter(requests), timeout=10)]
        assert right.infer_response.parameters["embedding_space"].string_param == "aa-float32"
        assert wrong.error_message.startswith("embedding_space: the vectors here are of the space aa-float32")
        with pytest.raises(grpc.aio.AioRpcError, match="not of the one that is asked for") as caught:
            await stub.ModelInfer(infer_request(b"text"), metadata=[("x-embedding-space", "bb-float32")], timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_answers_of_an_unknown_space_have_no_metadata_for_it():
    async with endpoint(1) as (_, stub):
        call = stub.ModelInfer(infer_request(b"text"), timeout=10)
        await call
        assert "x-embedding-space" not in dict(await call.trailing_metadata())
