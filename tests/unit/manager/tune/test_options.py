"""The options of `tune`: lists, loads, contradictions."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tritonembed_manager.errors import StartError
from tritonembed_manager.server.settings import RenderSettings
from tritonembed_manager.tune.loads import LoadShape, default_load, parse_load, second_load
from tritonembed_manager.tune.plan import TuneSettings, make_plan, parse_values
from tritonembed_manager.tune.server import ServerOptions
from tritonembed_manager.tune.trials import Candidate


def plan(longest=512, device="cpu", tokenizers=2, default_tokens=None, **given):
    settings = RenderSettings("m", device=device, tokenizer_instances=tokenizers)
    lists = dict.fromkeys(("tokenizer_instances", "replicas", "max_batch_tokens", "second_load"))
    rest = {"loads": (), "seconds": 3.0, "budget_minutes": 30.0, "force": False}
    options = TuneSettings(out=Path("out"), settings=settings, server=ServerOptions(60), **{**lists, **rest, **given})
    default = default_tokens or max({"cpu": 4096, "cuda": 32768}[device], longest)
    return make_plan(options, SimpleNamespace(max_length=longest), default)


def test_lists_become_sorted_distinct_numbers():
    assert parse_values("--replicas", "4,1, 2,1", 4) == [1, 2, 4]
    assert parse_values("--replicas", None, 4) == []


@pytest.mark.parametrize("text", ["", "1,,2", "0,1", "-1", "two", "1.5"])
def test_other_lists_are_refused_by_the_name_of_the_option(text):
    with pytest.raises(StartError, match=r"--replicas: .* is not a list of numbers above 0, such as 1,2,4"):
        parse_values("--replicas", text, 4)


@pytest.mark.parametrize(
    ("option", "most"), [("max_batch_tokens", 262144), ("replicas", 1024), ("tokenizer_instances", 1024)]
)
def test_a_list_is_limited_to_what_the_engine_or_a_machine_allows(option, most):
    assert list(plan(**{option: f"4096,{most}" if most > 4096 else f"1,{most}"}).space.values(option))[-1] == most
    for more in (most + 1, 99999999999999999999):
        with pytest.raises(StartError, match=f"{more}: at most {most} can be tried"):
            plan(**{option: f"1024,{more}"})


def test_a_cpu_has_few_candidates_around_the_default():
    space = plan().space
    assert (list(space.tokenizer_instances), list(space.replicas)) == ([1, 2], [1, 2])
    assert list(space.max_batch_tokens) == [2048, 4096, 8192]


def test_a_gpu_has_more_candidates():
    found = plan(device="cuda", tokenizers=8)
    assert list(found.space.tokenizer_instances) == [1, 2, 4, 8]
    assert list(found.space.replicas) == [1, 2, 3]
    assert list(found.space.max_batch_tokens) == [8192, 16384, 32768]
    assert found.defaults == Candidate(8, 1, 32768)


def test_no_budget_is_tried_that_is_smaller_than_the_longest_text():
    assert list(plan(longest=8192).space.max_batch_tokens) == [8192, 16384]
    assert list(plan(longest=3000).space.max_batch_tokens) == [4096, 8192]


def test_no_budget_is_tried_that_the_engine_refuses():
    assert list(plan(longest=200_000).space.max_batch_tokens) == [200_000]


def test_a_requested_budget_below_the_longest_text_is_refused():
    with pytest.raises(StartError, match="--max-batch-tokens 100: the longest text of this model has 512 tokens"):
        plan(max_batch_tokens="4096,100")


def test_the_search_starts_at_the_defaults_or_as_close_as_the_lists_allow():
    assert plan().defaults == Candidate(2, 1, 4096)
    assert not plan().limited
    limited = plan(tokenizer_instances="4,8", replicas="2,3")
    assert limited.defaults == Candidate(4, 2, 4096)
    assert limited.limited


def test_the_machines_default_is_among_the_candidates():
    assert list(plan(device="cuda", tokenizers=6).space.tokenizer_instances) == [1, 2, 4, 6, 8]


def test_nothing_to_choose_is_refused():
    with pytest.raises(StartError, match="nothing to choose"):
        plan(tokenizer_instances="2", replicas="1", max_batch_tokens="4096")


@pytest.mark.parametrize(
    ("device", "given", "needed"),
    [
        ("cpu", {"budget_minutes": 0.4}, "0.5"),
        ("cuda", {"budget_minutes": 0.5}, "1.2"),
        ("cpu", {"budget_minutes": 30, "seconds": 600}, "30.3"),
        ("cpu", {"budget_minutes": 0.5, "loads": ["50x1@1,50x1@2,50x1@3"]}, "0.8"),
    ],
)
def test_a_time_budget_too_short_for_one_server_is_refused(device, given, needed):
    minutes = given["budget_minutes"]
    with pytest.raises(StartError, match=rf"--budget-minutes {minutes}: one server, .*, takes about {needed} minutes"):
        plan(device=device, **given)


def test_a_load_is_tokens_sentences_and_concurrent_requests():
    assert parse_load("--load", "50x64@32") == LoadShape(50, 64, 32)
    assert str(LoadShape(50, 64, 32)) == "50x64@32"


@pytest.mark.parametrize("text", ["", "50x64", "0x1@1", "50x64@0", "50*64@32", "50x64@32x", "-50x64@32"])
def test_other_loads_are_refused(text):
    with pytest.raises(StartError, match=r"--load: .* is not a load such as 50x64@32"):
        parse_load("--load", text)


def test_loads_may_be_repeated_or_listed():
    assert plan(loads=["50x64@32,50x1@8", "50x64@32"]).loads == [LoadShape(50, 64, 32), LoadShape(50, 1, 8)]


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        ("513x1@1", "the longest text of this model has 512 tokens"),
        ("50x1025@1", "a request holds at most 1024 sentences"),
        ("50x1@5000", "at most 4096 requests can wait"),
    ],
)
@pytest.mark.parametrize("option", ["--load", "--second-load"])
def test_a_load_that_no_server_could_serve_is_refused(option, load, reason):
    given = {"loads": [load]} if option == "--load" else {"second_load": load}
    with pytest.raises(StartError, match=f"{option} {load}: {reason}"):
        plan(**given)


def test_the_default_load_fits_the_model():
    assert default_load("cpu", 512) == LoadShape(50, 16, 8)
    assert default_load("cuda", 512) == LoadShape(50, 64, 96)
    assert default_load("cpu", 32).tokens == 32


@pytest.mark.parametrize(
    "first", [LoadShape(50, 64, 96), LoadShape(50, 1, 256), LoadShape(512, 16, 8), LoadShape(3, 1, 1)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_second_load_differs_in_length_and_in_sentences(first, device):
    second = second_load([first], device, 512)
    assert second.tokens != first.tokens
    assert (second.sentences == 1) != (first.sentences == 1)
    second.check("--second-load", 512)


def test_the_second_load_may_be_chosen_but_not_the_same():
    assert plan(loads=["50x64@32"], second_load="20x4@2").second == LoadShape(20, 4, 2)
    with pytest.raises(StartError, match="--second-load 50x64@32: --load names it too"):
        plan(loads=["50x64@32"], second_load="50x64@32")
