"""`serve` and `status` on the command line: options, their variables, and contradictions."""

import json

import click
import pytest
import typer
from tests.fakes.certificates import Files
from tests.fakes.tenants import write_tenants
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.router.control import supervisor
from tritonembed_manager.router.control.discovery import Address
from tritonembed_manager.router.control.settings import DrainTime
from tritonembed_manager.router.link import WorkerConfig
from tritonembed_manager.server.vllm_arguments import variable

VARIABLES = {
    "TRITONEMBED_HOST": "127.0.0.1",
    "TRITONEMBED_PORT": "1001",
    "TRITONEMBED_HTTP_PORT": "1002",
    "TRITONEMBED_LOAD_BALANCING": "least_loaded",
    "TRITONEMBED_WORKERS": "3",
    "TRITONEMBED_HEALTH_INTERVAL": "0.5",
    "TRITONEMBED_HEALTH_TIMEOUT": "4",
    "TRITONEMBED_FORWARD_TIMEOUT": "5",
    "TRITONEMBED_STARTUP_TIMEOUT": "6",
    "TRITONEMBED_DRAIN_TIMEOUT": "7",
    "TRITONEMBED_MAX_IN_FLIGHT": "8",
    "TRITONEMBED_MAX_IN_FLIGHT_PER_SERVER": "9",
    "TRITONEMBED_LOG_FORMAT": "json",
}
LAUNCH_VARIABLES = {
    "TRITONEMBED_MODEL": "org/name",
    "TRITONEMBED_DEVICE": "cuda",
    "TRITONEMBED_REPLICA_HOST": "127.0.0.2",
    "TRITONEMBED_START_PORT": "2000",
    "TRITONEMBED_NUM_REPLICAS": "8",
    "TRITONEMBED_NUM_GPUS": "2",
    "TRITONEMBED_SERVERS": "2",
    "TRITONEMBED_GPU_ASSIGNMENT": "shared",
    "TRITONEMBED_TENSOR_PARALLEL_SIZE": "1",
    "TRITONEMBED_GPU_MEMORY_UTILIZATION": "0.8",
    "TRITONEMBED_TOKENIZER_INSTANCES": "5",
    "TRITONEMBED_MAX_RESTARTS": "2",
    "TRITONEMBED_RESTART_WINDOW": "60",
}


@pytest.fixture
def serve(monkeypatch):
    """Runs the command. Returns its settings, or its exit code and line."""
    found = []
    monkeypatch.setattr(supervisor, "run_serve", found.append)

    def run(*arguments, env=None):
        found.clear()
        result = CliRunner().invoke(app, ["serve", *map(str, arguments)], env=env or {})
        return found[0] if found else (result.exit_code, result.output)

    return run


@pytest.mark.parametrize("command", ["serve", "status", "replica", "render", "tune"])
def test_every_option_has_a_variable_of_its_name(command):
    for parameter in typer.main.get_command(app).commands[command].params:
        if isinstance(parameter, click.Option):
            variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
            assert variables == [variable(option) for option in parameter.opts]


def test_every_option_comes_from_the_environment_too(serve):
    settings = serve(env=VARIABLES | LAUNCH_VARIABLES)
    assert (settings.host, settings.port, settings.http_port) == ("127.0.0.1", 1001, 1002)
    assert (settings.policy, settings.workers, settings.log_format) == ("least_loaded", 3, "json")
    assert (settings.health.interval, settings.health.timeout, settings.forward_timeout) == (0.5, 4, 5)
    assert (settings.startup_timeout, settings.drain_timeout) == (6, 7)
    assert (settings.max_in_flight, settings.max_in_flight_per_server) == (8, 9)
    launch = settings.launch
    assert (launch.host, launch.start_port, launch.limits.limit, launch.limits.window) == ("127.0.0.2", 2000, 2, 60)
    assert [(plan.replicas, plan.gpus) for plan in launch.plans] == [(4, (0, 1))] * 2
    render = launch.plans[0].render
    assert (render.model, render.tokenizer_instances, render.gpu_memory_share()) == ("org/name", 5, 0.2)


def test_the_defaults_are_those_of_the_documentation(serve):
    settings = serve("--model", "org/name", "--device", "cpu")
    assert (settings.host, settings.port, settings.http_port) == ("0.0.0.0", 50050, 8080)
    assert (settings.policy, settings.workers, settings.names.model) == ("round_robin", 1, "org/name")
    launch = settings.launch
    assert (launch.host, launch.start_port) == ("127.0.0.1", 50100)
    assert [plan.replicas for plan in launch.plans] == [2]
    assert settings.attach is None


@pytest.mark.parametrize(("given", "after"), [((), None), (("p95",), "p95"), (("0.25",), 0.25)])
def test_hedging_is_off_or_after_a_percentile_or_seconds(serve, given, after):
    settings = serve("--server", "a:1", *(f"--hedge-after={value}" for value in given))
    config = settings.worker_config(1, DrainTime(1, 1, 0))
    assert WorkerConfig.from_json(json.loads(json.dumps(config.to_json()))).hedge_after == after


@pytest.mark.parametrize("wrong", ["p99", "0", "-1", "nan", "inf", ""])
def test_another_time_of_hedging_is_refused(serve, wrong):
    line = "tritonembed-manager: --hedge-after must be p95, or seconds above 0\n"
    assert serve("--server", "a:1", f"--hedge-after={wrong}") == (2, line)


def test_flags_of_arctic_inference_are_accepted(serve):
    """These are the flags of its replica manager."""
    given = "--model org/name --device cpu --host 0.0.0.0 --port 60050 --num-replicas 2 --load-balancing round_robin"
    given += " --health-interval 2 --forward-timeout 20 --startup-timeout 60 --workers 16 --disable-log-request"
    settings = serve(*given.split())
    assert (settings.port, settings.workers, settings.forward_timeout) == (60050, 16, 20)
    assert [plan.replicas for plan in settings.launch.plans] == [2]


def test_servers_to_attach_may_come_from_options_files_and_names(serve, tmp_path):
    file = tmp_path / "servers"
    file.write_text("c:1\n")
    given = ["--server", "a:1", "--server", "b:8001", "--servers-file", file, "--servers-dns", "name:2"]
    settings = serve(*given, "--model", "called-so")
    assert settings.attach.servers == [Address("a:1"), Address("b:8001", "b:8000", "b:8002")]
    assert settings.attach.file.read() == [Address("c:1")]
    assert settings.attach.dns is not None
    assert (settings.launch, settings.names.model) == (None, "called-so")
    settings = serve(env={"TRITONEMBED_SERVER": "a:1 b:1"})
    assert [address.grpc for address in settings.attach.servers] == ["a:1", "b:1"]
    assert settings.names.model == "embedding"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model is missing (or --server, --servers-file, --servers-dns, to attach)"),
        (["--model", "m", "--port", "8080"], "--port and --http-port are both 8080"),
        (["--server", "a:1", "--num-replicas", "2"], "--num-replicas is for servers that are launched; --server"),
        (["--servers-dns", "a:1", "--start-port", "2"], "--start-port is for servers that are launched; --servers-dns"),
        (["--server", "a:1", "--dtype", "half"], "--dtype is for servers that are launched"),
        (["--server", "a"], "--server: 'a' is not host:port"),
        (["--servers-dns", "a"], "--servers-dns: 'a' is not host:port"),
        (["--model", "m", "--device", "cpu", "--num-gpus", "2"], "--num-gpus needs --device cuda"),
        (["--model", "m", "--device", "cpu", "--gpu-assignment", "shared"], "--gpu-assignment needs --device cuda"),
        (["--model", "m", "--device", "cpu", "--tensor-parallel-size", "2"], "--tensor-parallel-size above 1 needs"),
        (["--model", "m", "--device", "cpu", "--servers", "3"], "--servers 3 is more than --num-replicas 2"),
        (["--model", "m", "--device", "cuda", "--num-gpus", "4"], "--num-replicas 2 leaves 2 of --num-gpus 4"),
        (["--model", "./none", "--device", "cpu"], "--model: there is no folder ./none"),
    ],
)
def test_missing_and_contradicting_options_are_one_line_and_exit_code_2(serve, arguments, words):
    code, output = serve(*arguments)
    assert code == 2
    assert output.startswith("tritonembed-manager: ")
    assert words in output
    assert output.count("\n") == 1


def test_a_value_out_of_range_is_exit_code_2(serve):
    assert serve("--model", "m", "--load-balancing", "best")[0] == 2
    assert serve("--model", "m", "--gpu-memory-utilization", "1.5")[0] == 2
    assert serve("--model", "m", "--workers", "0")[0] == 2


def test_the_files_of_tls_are_read_at_the_start(serve, tmp_path):
    files = Files(tmp_path)
    settings = serve("--server", "a:1", *files.options, f"--tls-client-ca={files.ca}")
    assert settings.tls.value.certificate == files.certificate.read_text()
    assert settings.worker_config(1, DrainTime(1, 1, 0)).tls.client_ca == files.authority.pem
    assert serve("--server", "a:1").tls is None
    files.key.unlink()
    code, output = serve("--server", "a:1", *files.options)
    assert (code, output) == (2, "tritonembed-manager: --tls-key cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tls-cert=a"], "--tls-cert and --tls-key go together"),
        (["--tls-key=a"], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca=a"], "--tls-client-ca needs --tls-cert and --tls-key"),
    ],
)
def test_options_of_tls_that_go_together(serve, options, line):
    assert serve("--server", "a:1", *options) == (2, f"tritonembed-manager: {line}\n")


def test_servers_over_tls_and_the_files_for_them(serve, tmp_path):
    files = Files(tmp_path)
    chain = [f"--server-cert={files.certificate}", f"--server-key={files.key}"]
    settings = serve("--server", "grpcs://a:8001", "--server", "b:1", f"--server-ca={files.ca}", *chain)
    assert settings.attach.servers == [Address("grpcs://a:8001", "a:8000", "a:8002"), Address("b:1")]
    config = settings.worker_config(1, DrainTime(1, 1, 0))
    assert config.server_tls.ca == files.authority.pem
    assert WorkerConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--server=grpcs://a:1", "--server-cert=a"], "--server-cert and --server-key go together"),
        (["--server=grpcs://a:1", "--server-ca=nowhere"], "--server-ca cannot be read: No such file or directory"),
        (
            ["--model=m", "--server-ca=a"],
            "--server-ca is for attached servers with grpcs:// (--server, --servers-file, --servers-dns)",
        ),
    ],
)
def test_options_of_servers_over_tls_that_are_wrong(serve, options, line):
    assert serve(*options) == (2, f"tritonembed-manager: {line}\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--envoy-threads=2"], "--envoy-threads is for --data-plane envoy"),
        (
            ["--data-plane=envoy", "--server=grpcs://h:1"],
            "--data-plane envoy: Envoy does not reach servers with grpcs://",
        ),
        (["--data-plane=envoy", "--envoy=/nowhere"], "--envoy is not a program"),
    ],
)
def test_what_envoy_can_not_do_is_one_line(serve, options, line):
    assert serve("--model=m", "--server=h:1", *options) == (2, f"tritonembed-manager: {line}\n")


def test_envoy_is_not_put_before_a_cache_that_tenants_share(serve, tmp_path):
    tenants = write_tenants(tmp_path / "tenants", one="")
    options = ["--model=org/m", "--device=cpu", "--data-plane=envoy", f"--tenants={tenants}"]
    line = "--cache-bytes: through Envoy the vectors of tenants would not be kept apart"
    assert serve(*options, "--cache-bytes=1000") == (2, f"tritonembed-manager: {line}\n")


def test_envoy_takes_the_ports_and_the_certificates_from_the_workers(serve, tmp_path):
    settings = serve("--server=h:1", "--data-plane=envoy", "--envoy-threads=3", *Files(tmp_path).options)
    assert (settings.envoy.threads, settings.envoy.binary.name) == (3, "envoy")
    config = settings.worker_config(16, DrainTime.of(30, launches=False), tmp_path)
    assert (config.sockets, config.tls) == (str(tmp_path), None)
    assert WorkerConfig.from_json(config.to_json()) == config


def test_each_model_has_names_and_servers_of_its_own(serve, tmp_path):
    (tmp_path / "first").mkdir()
    settings = serve(*("--model", tmp_path / "first", "--model", "bge=org/bge", "--device", "cuda", "--num-gpus", 2))
    names = settings.names
    assert [each.ids for each in names.models] == [("first",), ("bge",)]
    assert [each.served.name for each in names.models] == ["embedding", "bge"]
    plans = settings.launch.plans
    assert [(plan.render.served.name, plan.gpus) for plan in plans] == [
        ("embedding", (0,)),
        ("embedding", (1,)),
        ("bge", (0,)),
        ("bge", (1,)),
    ]
    assert {plan.render.gpu_memory_share() for plan in plans} == {0.45}
    line = json.dumps(settings.worker_config(1, DrainTime(1, 1, 0)).to_json())
    assert WorkerConfig.from_json(json.loads(line)).names.more == names.more


def test_a_file_gives_each_model_its_replicas_and_gpus(serve, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("models:\n - {path: org/a, gpus: [0]}\n - {name: b, path: org/b, gpus: [3], replicas: 4}\n")
    settings = serve("--models", file, "--device", "cuda", "--num-replicas", 1)
    assert [(plan.render.served.name, plan.gpus, plan.replicas) for plan in settings.launch.plans] == [
        ("embedding", (0,), 1),
        ("b", (3,), 4),
    ]
    assert [plan.render.gpus for plan in settings.launch.plans] == [(0,), (0,)]


def test_versions_of_a_model_have_servers_of_their_own_and_workers_divide_requests(serve):
    weights = ("--model", "x=org/old@90%", "--model", "x=org/new@10%", "--model", "other=org/o", "--device", "cpu")
    settings = serve(*weights)
    assert [each.ids for each in settings.names.models] == [("x",), ("other",)]
    found = [(version.served.name, version.name, version.weight) for version in settings.launch.versions]
    assert found == [("embedding", "old", 90.0), ("embedding", "new", 10.0), ("other", "o", 100.0)]
    assert settings.worker_config(1, DrainTime(1, 1, 0)).has_several
    assert serve(*weights[:4], "--device", "cpu").worker_config(1, DrainTime(1, 1, 0)).has_several
    assert not serve("--model", "x=org/old", "--device", "cpu").worker_config(1, DrainTime(1, 1, 0)).has_several


def test_a_models_file_is_read_with_the_other_options(serve, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text("models: [{name: x, path: org/a}]")
    settings = serve("--models", file, "--device", "cpu", "--num-replicas", 3)
    assert settings.worker_config(1, DrainTime(1, 1, 0)).has_several
    assert settings.launch.models_file.value.versions == settings.launch.versions
    assert [plan.replicas for plan in settings.launch.plans] == [3]


def test_attached_servers_may_have_several_models(serve):
    settings = serve("--server", "h:1", "--model", "minilm", "--model", "bge")
    assert [(each.ids, each.served.name) for each in settings.names.models] == [
        (("minilm",), "embedding"),
        (("bge",), "bge"),
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "a", "--model", "b"], "--model: model 2 needs a name"),
        (["--model", "x=a", "--model", "x=b"], "--model: two models are called x"),
        (["--model", "a", "--served-model-name", "b", "--model", "b=c"], "--model: two models are called b"),
        (["--server", "h:1", "--model", "a", "--model", "b/c"], "--model: a name has 1 to 100"),
        (["--server", "h:1", "--models", "none"], "--models is for servers that are launched"),
        (["--model", "a", "--models", "none"], "--model and --models exclude each other"),
        (["--model", "x=a@90%", "--model", "x=b@20%"], "--model: the weights of x add up to 110 %, not to 100 %"),
        (["--server", "h:1", "--model", "x@90%"], "--model: weights are for servers that are launched"),
        (
            ["--model", "x=a@90%", "--model", "x=b@10%", "--max-loaded", "1"],
            "--max-loaded: x has versions, which must all be in memory",
        ),
        (
            ["--model", "x=a@90%", "--model", "x=b@10%", "--xds-port", "1"],
            "--xds-port: x has versions, and clients would mix them",
        ),
        (
            ["--model", "x=a@90%", "--model", "x=b@10%", "--data-plane", "envoy"],
            "--data-plane envoy: Envoy sends no part of the requests to a version",
        ),
        (["--models", "none"], "--models: it cannot be read: No such file"),
    ],
)
def test_wrong_models_are_refused_in_one_line(serve, arguments, reason):
    code, output = serve(*arguments, "--device", "cpu") if "--server" not in arguments else serve(*arguments)
    assert code == 2
    assert reason in output
    assert output.count("\n") == 1
