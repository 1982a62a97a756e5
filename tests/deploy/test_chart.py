"""The Helm chart renders manifests that Kubernetes accepts and that agree with the programs they run.

No cluster runs here: `helm lint`, Kubernetes' own schemas, and the programs' own options are what is checked. The
manifests of cert-manager, KEDA and Prometheus' operator have no schema here.
"""

import re
import shutil
from typing import Any

import pytest
import typer
import yaml
from helm_python.chart import lint
from helm_python.errors import HelmError
from kubernetes_validate import validate
from prometheus_client import CollectorRegistry
from tests.deploy.charts import CHART, EXAMPLES, MODEL, ROOT, container, example, only, option, pod, render
from tests.fakes.certificates import Files
from typer.testing import CliRunner

from tritonembed.cli.app import app as client_app
from tritonembed_manager.commands.app import app as manager_app
from tritonembed_manager.router.control import supervisor
from tritonembed_manager.router.control.discovery import parse_address
from tritonembed_manager.router.control.tenants import parse_tenants
from tritonembed_manager.router.data.metrics import WorkerMetrics
from tritonembed_manager.server import foreground
from tritonembed_perf.autoscaling import Behavior, LoadRule

CLIENT: dict[str, Any] = typer.main.get_command(client_app).commands  # type: ignore[attr-defined]
OWN_KINDS = {"Certificate", "ScaledObject", "ServiceMonitor", "PrometheusRule"}
"""Kinds of other projects, whose schemas Kubernetes does not have."""
PROBES = ("startup", "readiness", "liveness")
KUBERNETES = ("1.31", "1.37")
"""The oldest that has image volumes, and the newest."""
EACH = pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])


def pods(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod that the manifests make, as metadata and spec."""
    return [pod(manifests, "server"), pod(manifests, "manager"), *(one for one in manifests if one["kind"] == "Pod")]


@EACH
def test_an_example_passes_helms_lint(name):
    report = lint(CHART, example(name), strict=True)
    assert report["errors"] == []
    assert [line for line in report["messages"] if line["severity"] > 1] == []


@EACH
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_manifest_of_an_example(name, version):
    manifests = render(example(name))
    for manifest in manifests:
        if manifest["kind"] not in OWN_KINDS:
            validate(manifest, version, strict=True)
    assert len(manifests) > 7


@EACH
def test_the_programs_accept_the_command_lines_of_their_pods(name, monkeypatch, tmp_path):
    manifests = render(example(name))
    (tmp_path / "tls").mkdir()
    Files(tmp_path / "tls")
    (tmp_path / "tenants").mkdir()
    (tmp_path / "tenants" / "tenants.yaml").write_text(f"tenants: [{{name: a, keys: [{{sha256: {'3f' * 32}}}]}}]")
    (tmp_path / "models" / example(name)["model"]["name"]).mkdir(parents=True)
    monkeypatch.setenv("TRITONEMBED_QUOTA_STORE", "redis://redis:6379/0" if name == "many-nodes" else "")
    served, started = [], []
    monkeypatch.setattr(supervisor, "run_serve", served.append)
    monkeypatch.setattr(foreground, "run_replica", lambda server, **rest: started.append((server, rest)))
    for component, command in (("server", ["replica"]), ("manager", [])):
        texts = [text.replace("/etc/tritonembed", str(tmp_path)) for text in container(manifests, component)["args"]]
        args = [text.replace("=/models/", f"={tmp_path}/models/") for text in texts]
        result = CliRunner().invoke(manager_app, [*command, *args])
        assert result.exit_code == 0, result.output
    assert served[0].policy == "least_loaded"
    assert served[0].lame_duck == 15
    assert started[0][0].metrics_port == 8002


@EACH
def test_probes_and_the_test_pod_use_options_of_the_client(name):
    manifests = render(example(name))
    server = container(manifests, "server")
    commands = [server[probe]["exec"]["command"] for probe in ("startupProbe", "livenessProbe")]
    commands += [one["spec"]["containers"][0]["command"] for one in manifests if one["kind"] == "Pod"]
    known = {option for parameter in CLIENT["health"].params for option in parameter.opts}
    for program, command, *options in commands:
        assert (program, command) == ("tritonembed", "health")
        assert {text.partition("=")[0] for text in options} <= known


@EACH
def test_containers_have_no_rights_and_pods_no_token(name):
    for one in pods(render(example(name))):
        spec = one["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@EACH
def test_what_containers_mount_is_there(name):
    for one in pods(render(example(name))):
        volumes = [volume["name"] for volume in one["spec"].get("volumes", [])]
        assert len(set(volumes)) == len(volumes)
        mounted = set()
        for each in (*one["spec"]["containers"], *one["spec"].get("initContainers", [])):
            mounted |= {mount["name"] for mount in each.get("volumeMounts", [])}
        assert mounted == set(volumes)


@EACH
def test_selectors_choose_the_pods_of_one_component(name):
    manifests = render(example(name))
    labels = {one: pod(manifests, one)["metadata"]["labels"] for one in ("server", "manager")}

    def chosen(selector: dict[str, str]) -> list[str]:
        return [one for one, has in labels.items() if selector.items() <= has.items()]

    for component in labels:
        deployment = only(manifests, "Deployment", f"-{component}")
        assert chosen(deployment["spec"]["selector"]["matchLabels"]) == [component]
        policy = only(manifests, "NetworkPolicy", f"-{component}")
        assert chosen(policy["spec"]["podSelector"]["matchLabels"]) == [component]
        for spread in pod(manifests, component)["spec"]["topologySpreadConstraints"]:
            assert chosen(spread["labelSelector"]["matchLabels"]) == [component]
    for budget in (one for one in manifests if one["kind"] == "PodDisruptionBudget"):
        component = budget["metadata"]["name"].rpartition("-")[2]
        assert chosen(budget["spec"]["selector"]["matchLabels"]) == [component]
    assert chosen(only(manifests, "Service", "-server")["spec"]["selector"]) == ["server"]
    assert chosen(only(manifests, "Service", "-tritonembed")["spec"]["selector"]) == ["manager"]


@EACH
def test_ports_of_services_and_policies_are_ports_of_containers(name):
    manifests = render(example(name))
    ports = {
        one: {port["name"]: port["containerPort"] for port in container(manifests, one)["ports"]}
        for one in ("server", "manager")
    }
    assert ports["server"]["grpc"] == int(option(manifests, "server", "--port") or 0)
    assert ports["server"]["metrics"] == int(option(manifests, "server", "--metrics-port") or 0)
    assert ports["manager"]["grpc"] == int(option(manifests, "manager", "--port") or 0)
    assert ports["manager"]["http"] == int(option(manifests, "manager", "--http-port") or 0)
    for component, suffix in (("server", "-server"), ("manager", "-tritonembed")):
        service = only(manifests, "Service", suffix)["spec"]
        assert {port["targetPort"] for port in service["ports"]} == set(ports[component])
        policy = only(manifests, "NetworkPolicy", f"-{component}")["spec"]
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert opened == set(ports[component])


@EACH
def test_managers_reach_servers_and_others_only_their_metrics(name):
    manifests = render(example(name))
    manager = only(manifests, "Deployment", "-manager")["spec"]["selector"]["matchLabels"]
    server = only(manifests, "Deployment", "-server")["spec"]["selector"]["matchLabels"]
    own, *others = only(manifests, "NetworkPolicy", "-server")["spec"]["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": manager}}]
    both = [{"port": "grpc", "protocol": "TCP"}, {"port": "metrics", "protocol": "TCP"}]
    assert own["ports"] == both
    assert all(rule["ports"] == both[1:] for rule in others)
    to_servers = only(manifests, "NetworkPolicy", "-manager")["spec"]["egress"][0]
    assert to_servers == {"to": [{"podSelector": {"matchLabels": server}}], "ports": both}


def test_managers_look_up_the_servers_headless_service_and_read_their_metrics():
    manifests = render(MODEL)
    service = only(manifests, "Service", "-server")
    assert service["spec"]["clusterIP"] == "None"
    host = f"{service['metadata']['name']}.search.svc.cluster.local"
    address = parse_address(option(manifests, "manager", "--servers-dns") or "")
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert address.grpc == f"{host}:{ports['grpc']}"
    assert address.metrics == f"{host}:{ports['metrics']}"


@EACH
def test_a_pod_has_the_time_to_end_that_its_program_takes(name):
    manifests = render(example(name))
    server = pod(manifests, "server")["spec"]
    pause = server["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(option(manifests, "server", "--drain-timeout") or 0)
    assert server["terminationGracePeriodSeconds"] > pause + drain
    # CoreDNS lets resolvers keep a record for 30 s, and managers look up every 5 s.
    assert pause > 30 + 5
    manager = pod(manifests, "manager")["spec"]
    lame_duck = float(option(manifests, "manager", "--lame-duck") or 0)
    drain = float(option(manifests, "manager", "--drain-timeout") or 0)
    assert manager["terminationGracePeriodSeconds"] > lame_duck + drain
    readiness = manager["containers"][0]["readinessProbe"]
    assert lame_duck > readiness["periodSeconds"] * readiness["failureThreshold"]


@EACH
def test_a_server_may_start_for_as_long_as_its_own_limit(name):
    manifests = render(example(name))
    probe = container(manifests, "server")["startupProbe"]
    limit = float(option(manifests, "server", "--startup-timeout") or 0)
    assert probe["periodSeconds"] * probe["failureThreshold"] >= limit
    assert only(manifests, "Deployment", "-server")["spec"]["progressDeadlineSeconds"] > limit


def test_an_overloaded_server_stays_ready_and_a_hung_server_is_restarted():
    server = container(render(MODEL), "server")
    assert server["readinessProbe"]["grpc"] == {"port": 50051}
    assert "health" in server["startupProbe"]["exec"]["command"]
    alive = server["livenessProbe"]
    assert "health" in alive["exec"]["command"]
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 180


def test_the_managers_probes_tell_alive_from_ready():
    routes = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    paths = {}
    for readiness in ("servers", "process"):
        manager = container(render({**MODEL, "manager": {"readiness": readiness}}), "manager")
        paths[readiness] = [
            manager[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")
        ]
    assert paths == {"servers": ["/livez", "/readyz", "/livez"], "process": ["/livez", "/livez", "/livez"]}
    assert all(f"`{path}`" in routes for path in ("/readyz", "/livez"))


@pytest.mark.parametrize(
    ("model", "argument", "volume"),
    [
        ({"name": "BAAI/bge-m3"}, "BAAI/bge-m3", None),
        ({"name": "bge-m3", "source": "claim", "claim": {"name": "pvc"}}, "/models/bge-m3", "persistentVolumeClaim"),
        ({"name": "a/bge-m3", "source": "image", "image": {"reference": "r/m:1"}}, "/models/a/bge-m3", "image"),
        ({"name": "bge-m3", "source": "init", "init": {"image": "i:1"}}, "/models/bge-m3", "emptyDir"),
        ({"name": "/opt/bge-m3", "source": "container"}, "/opt/bge-m3", None),
    ],
    ids=lambda value: value["source"] if isinstance(value, dict) and "source" in value else None,
)
def test_the_model_comes_from_where_the_values_say(model, argument, volume):
    manifests = render({"model": model})
    for manifest in manifests:
        validate(manifest, KUBERNETES[0], strict=True)
    assert option(manifests, "server", "--model") == argument
    assert option(manifests, "manager", "--model") == (model["name"] if "source" not in model else "bge-m3")
    volumes = {one["name"]: one for one in pod(manifests, "server")["spec"]["volumes"]}
    assert ("models" in volumes) == (volume is not None)
    assert volume is None or volume in volumes["models"]
    # A model that is here is never looked for on the hub.
    offline = {"name": "HF_HUB_OFFLINE", "value": "1"} in container(manifests, "server")["env"]
    assert offline == ("source" in model)


def test_a_mig_slice_takes_the_place_of_a_gpu():
    values = {**MODEL, "server": {"gpuResource": "nvidia.com/mig-1g.18gb", "resources": {"limits": {"memory": "16Gi"}}}}
    resources = container(render(values), "server")["resources"]
    assert resources["limits"] == {"nvidia.com/mig-1g.18gb": 1, "memory": "16Gi"}
    assert resources["requests"]["nvidia.com/mig-1g.18gb"] == 1
    assert not any("gpu" in name for name in container(render(example("cpu-only")), "server")["resources"]["limits"])


def test_replicas_share_a_gpu_and_tensors_are_in_memory():
    manifests = render({**MODEL, "server": {"sharedMemory": "2Gi"}})
    volumes = {one["name"]: one for one in pod(manifests, "server")["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(manifests, "server")["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert option(manifests, "server", "--replicas") == "2"
    assert "--no-mps" not in container(manifests, "server")["args"]
    without = render({**MODEL, "server": {"mps": False}})
    assert "--no-mps" in container(without, "server")["args"]


def test_tenants_become_a_secret_that_the_manager_reads():
    tenant = {"name": "search", "keys": [{"sha256": "3f" * 32}], "tokens_per_minute": 1000}
    manifests = render({**MODEL, "tenants": {"list": [tenant]}})
    secret = only(manifests, "Secret")
    validate(secret, KUBERNETES[0], strict=True)
    (read,) = parse_tenants(secret["stringData"]["tenants.yaml"].encode())
    assert (read.name, read.tokens_per_minute) == ("search", 1000)
    file = option(manifests, "manager", "--tenants") or ""
    mounts = {mount["name"]: mount["mountPath"] for mount in container(manifests, "manager")["volumeMounts"]}
    assert file == f"{mounts['tenants']}/tenants.yaml"
    volumes = {one["name"]: one for one in pod(manifests, "manager")["spec"]["volumes"]}
    assert volumes["tenants"]["secret"]["secretName"] == secret["metadata"]["name"]


def test_cert_manager_writes_the_secret_that_the_manager_mounts():
    manifests = render(example("many-nodes"))
    certificate = only(manifests, "Certificate")["spec"]
    volumes = {one["name"]: one for one in pod(manifests, "manager")["spec"]["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == certificate["secretName"]
    assert "embeddings-tritonembed.search.svc" in certificate["dnsNames"]
    assert container(manifests, "manager")["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_with_client_certificates_probes_open_a_connection_only():
    tls = {"enabled": True, "secretName": "tls", "clientCa": {"secretName": "clients"}}
    manifests = render({**MODEL, "tls": tls})
    assert option(manifests, "manager", "--tls-client-ca") == "/etc/tritonembed/client-ca/ca.crt"
    manager = container(manifests, "manager")
    assert [manager[f"{one}Probe"]["tcpSocket"] for one in ("startup", "readiness", "liveness")] == 3 * [
        {"port": "http"}
    ]


@pytest.mark.parametrize(
    ("name", "kind"), [("many-nodes", "HorizontalPodAutoscaler"), ("scale-to-zero", "ScaledObject")]
)
def test_an_autoscaler_alone_sets_the_number_of_servers(name, kind):
    manifests = render(example(name))
    deployment = only(manifests, "Deployment", "-server")
    assert "replicas" not in deployment["spec"]
    assert only(manifests, kind)["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_autoscalers_have_the_rule_of_the_simulation():
    rule, behavior = LoadRule(), Behavior()
    hpa = only(render(example("many-nodes")), "HorizontalPodAutoscaler")["spec"]
    targets = {one["external"]["metric"]["name"]: one["external"]["target"] for one in hpa["metrics"]}
    assert {name: (target["type"], float(target["averageValue"])) for name, target in targets.items()} == {
        "tritonembed_busy_servers": ("AverageValue", rule.use),
        "tritonembed_waiting_seconds": ("AverageValue", rule.backlog),
    }
    up, down = hpa["behavior"]["scaleUp"], hpa["behavior"]["scaleDown"]
    assert [one["value"] for one in up["policies"]] == [behavior.up_pods, 100 * behavior.up_share]
    assert [one["value"] for one in down["policies"]] == [behavior.down_pods, 100 * behavior.down_share]
    assert (up["selectPolicy"], down["selectPolicy"]) == ("Max", "Max")
    assert (up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"]) == (0, behavior.settle)
    busy, waiting, first = only(render(example("scale-to-zero")), "ScaledObject")["spec"]["triggers"]
    assert [float(one["metadata"]["threshold"]) for one in (busy, waiting)] == [rule.use, rule.backlog]
    # Only what is known without any server may start the first one.
    assert first["metadata"]["activationThreshold"] == "0"
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    known = {metric.name + "_total" * (metric.type == "counter") for metric in registry.collect()}
    for one in (busy, waiting, first):
        assert one["metricType"] == "AverageValue"
        (name,) = re.findall(r"tritonembed_\w+", one["metadata"]["query"])
        assert name in known
        assert 'namespace="search"' in one["metadata"]["query"]
    # The guide's rules for prometheus-adapter make the HPA's metrics of the same series.
    guide = (ROOT / "docs" / "guides" / "autoscaling.md").read_text(encoding="utf-8")
    (adapter,) = re.findall(r"```yaml\n(rules:.*?)```", guide, re.DOTALL)
    made = {one["name"]["as"]: one["metricsQuery"] for one in yaml.safe_load(adapter)["rules"]["external"]}
    assert set(made) == set(targets)
    for name, one in (("tritonembed_busy_servers", busy), ("tritonembed_waiting_seconds", waiting)):
        query = made[name].replace("<<.LabelMatchers>>", 'namespace="search"')
        assert query == one["metadata"]["query"]


def test_requests_wait_longer_than_a_cold_start_with_scale_to_zero():
    manifests = render(example("scale-to-zero"))
    assert only(manifests, "ScaledObject")["spec"]["minReplicaCount"] == 0
    assert container(manifests, "manager")["readinessProbe"]["httpGet"]["path"] == "/livez"
    assert option(manifests, "manager", "--startup-timeout") == "86400"
    assert option(manifests, "manager", "--forward-timeout") == "600"


def test_servers_metrics_are_scraped_once():
    manifests = render(example("scale-to-zero"))
    (endpoint,) = only(manifests, "ServiceMonitor", "-manager")["spec"]["endpoints"]
    assert endpoint["metricRelabelings"] == [
        {"sourceLabels": ["__name__"], "regex": "nv_.+", "action": "drop"},
        {"sourceLabels": ["exported_instance"], "regex": ".+", "action": "drop"},
    ]
    # Otherwise Prometheus would not rename the engine's label, which the manager's own metrics lack.
    assert "honorLabels" not in endpoint
    registry = CollectorRegistry()
    WorkerMetrics(registry)
    labels = {label for metric in registry.collect() for sample in metric.samples for label in sample.labels}
    assert "instance" not in labels
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert "with the label `instance`" in page.partition("## Of the manager")[0]


def test_prometheus_rules_come_from_a_file_of_the_chart_and_from_values(tmp_path):
    chart = tmp_path / "tritonembed"
    shutil.copytree(CHART, chart)
    group = {
        "name": "ours",
        "rules": [{"alert": "Down", "expr": "up == 0", "annotations": {"summary": "{{ $labels.pod }}"}}],
    }
    (chart / "files").mkdir(exist_ok=True)
    (chart / "files" / "some.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    more = {"name": "more", "rules": []}
    rule = {"enabled": True, "file": "files/some.yaml", "groups": [more]}
    found = only(render({**MODEL, "monitoring": {"prometheusRule": rule}}, chart), "PrometheusRule")
    assert found["spec"]["groups"] == [group, more]
    with pytest.raises(HelmError, match=r"the chart has no files/none\.yaml, and groups is empty"):
        render({**MODEL, "monitoring": {"prometheusRule": {"enabled": True, "file": "files/none.yaml"}}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model.name is required"),
        ({**MODEL, "server": {"replicaz": 2}}, "replicaz"),
        ({**MODEL, "server": {"device": "tpu"}}, "/server/device"),
        ({**MODEL, "manager": {"loadBalancing": "fastest"}}, "/manager/loadBalancing"),
        ({**MODEL, "server": {"image": {"digest": "sha256:1"}}}, "/server/image/digest"),
        ({**MODEL, "tls": {"enabled": True}}, "tls.enabled needs tls.secretName, or tls.certManager.enabled"),
        ({"model": {"name": "m", "source": "claim"}}, "model.claim.name is required"),
        ({**MODEL, "autoscaling": {"kind": "hpa", "minReplicas": 0}}, "keda scales to zero"),
    ],
)
def test_wrong_values_are_refused_with_their_name(values, message):
    with pytest.raises(HelmError) as caught:
        render(values)
    assert message in str(caught.value)
