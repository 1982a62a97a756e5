"""`serve` itself bounds requests in flight, so its servers get Triton's queue limits only on request."""

import pytest
from typer.testing import CliRunner

from tritonembed_manager.commands.app import app
from tritonembed_manager.router.control import supervisor
from tritonembed_manager.server.repository import QUEUE_FIELDS, read_configs, render

BATCHING = ("tokenizer", "embedder")


@pytest.fixture
def limits(monkeypatch, tmp_path):
    """Runs the command. Returns, per server that it would launch, the models whose Triton queues have limits."""

    def run(*arguments, env=None):
        found = []
        monkeypatch.setattr(supervisor, "run_serve", found.append)
        given = ["--model", "org/name", "--device", "cpu", "--servers", "2", *arguments]
        result = CliRunner().invoke(app, ["serve", *given], env=env)
        assert result.exit_code == 0, result.output
        repositories = []
        for number, plan in enumerate(found[0].launch.plans):
            render(tmp_path / str(number), plan.render)
            repositories.append(read_configs(tmp_path / str(number)))
        return [[name for name in BATCHING if _has_limits(configs[name])] for configs in repositories]

    return run


def _has_limits(config):
    fields = {field.name for field, _ in config.dynamic_batching.ListFields()}
    return bool(fields & set(QUEUE_FIELDS))


def test_the_servers_of_serve_have_no_queue_limits(limits):
    assert limits() == [[], []]
    assert limits("--no-queue-limits", env={"TRITONEMBED_QUEUE_LIMITS": "1"}) == [[], []]


def test_the_option_adds_queue_limits_to_every_server(limits):
    assert limits("--queue-limits") == [list(BATCHING)] * 2
    assert limits(env={"TRITONEMBED_QUEUE_LIMITS": "1"}) == [list(BATCHING)] * 2


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda", True)])
def test_render_alone_keeps_queue_limits_on_a_gpu(tmp_path, device, expected):
    def render_with(*more):
        out = tmp_path / "-".join(("r", *more))
        given = ["render", str(out), "--model", "org/name", "--device", device, *more]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
        return [_has_limits(read_configs(out)[name]) for name in BATCHING]

    assert render_with() == [expected] * 2
    assert render_with("--queue-limits") == [True] * 2
    assert render_with("--no-queue-limits") == [False] * 2
