"""`tritonembed-manager tune` measures real servers. It takes its budget of two minutes."""

import json

from tests.integration.test_tune import Tune

from tritonembed_manager.server.repository import read_configs


def test_tune_measures_real_servers_and_writes_the_winner(model, tmp_path):
    out = tmp_path / "models"
    # There is time for two servers, but not for a repeat or a check, so the defaults are written.
    options = ["--device=cpu", "--tokenizer-instances=1,2", "--replicas=1", "--max-batch-tokens=4096"]
    tune = Tune(out, f"--model={model}", *options, "--load=20x8@4", "--seconds=1", "--budget-minutes=1.8")
    code, said, err = tune.finish()
    assert code == 0, err
    rows = [line.split() for line in said.splitlines() if line.split()[0].isdigit()]
    assert rows[0][:5] == ["1", "2", "1", "4096", "20x8@4"]
    assert len(rows[0]) == 8
    record = json.loads((out / "tune.json").read_text())
    assert len(record["search"]) + len(record["check"]) == len(rows)
    assert all(len(attempt["runs"]["20x8@4"]) == 3 for attempt in record["search"])
    assert record["decision"].lower() in said.lower()
    configs = read_configs(out)
    assert set(configs) == {"tokenizer", "embedder", "embedding", "embedding_chunks"}
    assert configs["tokenizer"].instance_group[0].count == record["written"]["tokenizer_instances"]
    assert "max_batch_tokens" not in json.loads((out / "model.json").read_text())["engine"]
    assert not tune.family()
    assert not tune.regions()
