"""A real Triton server of the wheel, outside of a checkout."""

import os
import re
import signal
import subprocess

import numpy as np
from tests.deploy.wheels import ROOT, build, install
from tests.integration.serve import START_LIMIT_S

from tritonembed import EmbeddingClient
from tritonembed_perf.server import free_ports

TEXTS = ["a cat sits on the mat", "stock prices fell sharply today"]


def test_a_server_of_the_wheel_gives_the_vectors_of_the_checkout(model, client, tmp_path):
    lock = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+)(?:\[.*\])?==", lock, re.MULTILINE)
    bin = install(build(tmp_path), tmp_path / "bare", [*names, "torch"])
    port, http_port, metrics_port = free_ports(3)
    ports = [f"--port={port}", f"--http-port={http_port}", f"--metrics-port={metrics_port}"]
    command = [bin / "tritonembed-manager", "replica", "--model", model, "--host=127.0.0.1", *ports, "--device=cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [*command, f"--startup-timeout={START_LIMIT_S}"], stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
    )
    try:
        assert server.stdout.readline().startswith("READY grpc")
        with EmbeddingClient(f"127.0.0.1:{port}") as own:
            found = own.embed(TEXTS).embeddings
        np.testing.assert_allclose(found, client.embed(TEXTS).embeddings, atol=1e-5)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
