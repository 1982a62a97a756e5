"""tcmalloc is preloaded where it is, unless the user has chosen."""

from tritonembed_manager.allocator import preload_tcmalloc


def installed(*names: str):  # type: ignore[no-untyped-def]
    return lambda name: f"lib{name}.so.4" if name in names else None


def test_the_small_one_is_taken_before_the_one_with_a_profiler() -> None:
    assert preload_tcmalloc({}, installed("tcmalloc", "tcmalloc_minimal")) == {"LD_PRELOAD": "libtcmalloc_minimal.so.4"}
    assert preload_tcmalloc({}, installed("tcmalloc")) == {"LD_PRELOAD": "libtcmalloc.so.4"}


def test_without_it_nothing_changes() -> None:
    assert preload_tcmalloc({}, installed("jemalloc")) == {}


def test_what_the_user_preloads_stays_and_an_empty_variable_turns_it_off() -> None:
    assert preload_tcmalloc({"LD_PRELOAD": "libjemalloc.so.2"}, installed("tcmalloc")) == {}
    assert preload_tcmalloc({"LD_PRELOAD": ""}, installed("tcmalloc")) == {}
