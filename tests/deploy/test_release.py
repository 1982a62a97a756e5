"""A release is refused if its metadata, its notes, its chart or a licence is not as it should be."""

import sys

import pytest
import tomllib
from tests.deploy.charts import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import release

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METADATA = f"""Metadata-Version: 2.4
Name: tritonembed
Version: {PROJECT["version"]}
Summary: one line
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
Requires-Dist: numpy>=1.26
Description-Content-Type: text/markdown

# tritonembed
"""


def test_the_notes_are_the_section_of_the_version():
    changelog = "# Changelog\n\n## 1.1.0\n\n- new\n\n## 1.0.0 (2026-01-01)\n\n- old\n"
    assert release.notes("1.0.0", changelog) == "# tritonembed 1.0.0\n\n- old\n"
    assert release.notes("1.1.0", changelog) == "# tritonembed 1.1.0\n\n- new\n"
    with pytest.raises(release.ReleaseError, match=r"no section for 1\.0"):
        release.notes("1.0", "## 1.0.0\n- old\n")
    assert release.notes(PROJECT["version"], (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def test_sound_metadata_has_no_fault():
    assert release.check_metadata(METADATA, PROJECT) == []


@pytest.mark.parametrize(
    ("line", "replaced", "fault"),
    [
        ("Summary: one line\n", "", "no Summary"),
        ("License-Expression: Apache-2.0\n", "", "no License-Expression"),
        ("License-File: LICENSE\n", "", "licence's file"),
        (f"Version: {PROJECT['version']}", "Version: 0", "another name or version"),
        ("text/markdown", "text/plain", "no description in Markdown"),
        ("Requires-Python: >=3.10\n", "", "which Pythons"),
        ("numpy>=1.26", "numpy @ https://example/numpy.whl", "is a URL"),
    ],
)
def test_what_an_index_would_refuse_is_named(line, replaced, fault):
    assert line in METADATA
    (found,) = release.check_metadata(METADATA.replace(line, replaced), PROJECT)
    assert fault in found


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("Apache-2.0", True),
        ("MIT License", True),
        ("BSD-3-Clause", True),
        ("GPL-3.0-only", False),
        ("Proprietary", False),
        (None, False),
    ],
)
def test_a_licence_is_allowed_or_named(monkeypatch, said, allowed):
    monkeypatch.setattr(release, "licence", lambda _: said)
    assert release.check_licences(["some-package"]) == (
        [] if allowed else [f"the licence of some-package is {said or 'unknown'}"]
    )


def test_every_package_that_is_locked_has_a_licence_that_is_allowed():
    names = [pin["name"] for pin in release.pins("cpu")]
    assert len(names) > 150
    assert release.check_licences(names) == []
    assert set(release._REVIEWED) <= set(names)


def test_a_bill_of_materials_names_every_package_with_its_hash():
    bill = release.bill("cuda", "1.0.0")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    vllm = next(one for one in bill["components"] if one["name"] == "vllm")
    assert vllm["purl"] == f"pkg:pypi/vllm@{vllm['version']}"
    assert len(vllm["hashes"][0]["content"]) == 64
    lines = (ROOT / "requirements" / "cuda.lock").read_text(encoding="utf-8").splitlines()
    # And torch, whose command is in the lock's head.
    assert len(bill["components"]) == len([line for line in lines if line and not line.startswith("#")]) + 1


@pytest.mark.parametrize(("lock", "purl"), [("cpu", "torch@2.13.0%2Bcpu"), ("cuda", "torch@2.11.0")])
def test_a_bill_of_materials_has_torch_which_no_list_of_packages_has(lock, purl):
    (torch,) = [one for one in release.bill(lock, "1.0.0")["components"] if one["name"] == "torch"]
    assert torch["purl"] == f"pkg:pypi/{purl}"
    # The build for CUDA comes from an index whose hash the lock does not know.
    assert ("hashes" in torch) == (lock == "cpu")


def test_the_chart_has_the_version_of_the_project():
    chart = (ROOT / "deploy" / "helm" / "tritonembed" / "Chart.yaml").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\nappVersion: {PROJECT['version']}\n" in chart
