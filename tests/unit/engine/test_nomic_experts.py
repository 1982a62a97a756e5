"""nomic-embed-text-v2-moe is refused where it can't run, and never compared with a model without its experts."""

from pathlib import Path

import pytest

from tritonembed_engine.errors import ModelError
from tritonembed_engine.factory import create_executor
from tritonembed_engine.model.architecture import has_experts, reason_against_cpu
from tritonembed_engine.model.files import read_model_files
from tritonembed_engine.reference.making import make_reference
from tritonembed_engine.settings import ModelSettings
from tritonembed_perf.families.registry import load_cases
from tritonembed_perf.families.writing import edit_json

EXPERTS = {"moe_every_n_layers": 2, "moe_top_k": 2, "num_experts": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small NomicBERT whose config.json has experts."""
    load_cases()["nomic_2l"].write(tmp_path / "nomic_moe")
    edit_json(tmp_path / "nomic_moe" / "config.json", **EXPERTS)
    return tmp_path / "nomic_moe"


@pytest.mark.parametrize("reference", ["auto", "off"])
def test_on_a_cpu_the_refusal_says_that_vllm_has_only_kernels_for_gpus(reference: str, folder: Path) -> None:
    settings = ModelSettings.model_validate({"model": str(folder), "engine": {"reference": reference}})
    expected = "^nomic_moe can't be served on a CPU: vLLM runs NomicBERT's mixture of experts by Triton kernels alone"
    with pytest.raises(ModelError, match=expected):
        create_executor(settings, read_model_files(str(folder)), "cpu")


def test_there_is_no_reference_for_experts(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"^nomic_moe: transformers' NomicBERT has no mixture of experts.*--reference"):
        make_reference(str(folder), None, 16, False)


def test_nomic_bert_without_experts_is_served_on_a_cpu() -> None:
    without = {"model_type": "nomic_bert", "moe_every_n_layers": 0}
    assert not has_experts(without)
    assert reason_against_cpu(without) is None
    assert has_experts({**without, **EXPERTS})


def test_an_adapter_of_it_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"nomic_moe is a LoRA adapter \(adapter_config\.json\)"):
        read_model_files(str(folder))


@pytest.mark.parametrize(
    ("file", "named"), [("tokenizer.json", "has no tokenizer"), ("config.json", "has no config.json")]
)
def test_a_missing_file_is_named(file: str, named: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"nomic_moe .*{named}"):
        read_model_files(str(folder))
