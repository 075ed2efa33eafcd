"""cache_clear on a real Redis: the cache's own keys of one pattern, and no other's."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.cache import cache, caches
from django.core.management import call_command

from error_logging import actuators, desired_state, measurements
from error_logging.testing import directive


@pytest.fixture(autouse=True)
def caches_on_redis(redis_server: Any, settings: Any, tmp_path: Path) -> Iterator[redis.Redis]:
    backend = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis_server.url()}
    settings.CACHES = {
        "default": {**backend, "KEY_PREFIX": "site"},
        "plain": backend,
        "globs": {**backend, "KEY_PREFIX": "s*[te]?\\"},
        "memory": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": str(tmp_path)},
        "files": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)},
        "table": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cached", "KEY_PREFIX": "a_%"},
        "other": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cached", "KEY_PREFIX": "aXX"},
        "dummy": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
    }
    with redis.Redis.from_url(redis_server.url()) as client:
        client.flushall()
        yield client
    desired_state.reset()
    for one in caches.all(initialized_only=True):
        one.close()


def clear(pattern: Any, target: str = "default", **more: Any) -> dict[str, Any]:
    return desired_state.apply_one(directive("cache_clear", target, pattern=pattern, graceful=True, **more))


def test_only_the_pattern_goes() -> None:
    cache.set_many({"report:1": 1, "report:2": 2, "reports": 3, "menu": 4})
    told = clear("report:*")
    assert told["status"] == "applied"
    assert told["before"] == {"keys": 2}
    assert told["after"] == {"keys": 0, "deleted": 2, "pattern": "report:*"}
    assert cache.get_many(["report:1", "report:2", "reports", "menu"]) == {"reports": 3, "menu": 4}


def test_foreign_keys_survive_even_everything(caches_on_redis: redis.Redis) -> None:
    foreign = {"queue": "x", "sites:1:a": "x", "xsite:1:a": "x", "site:2:a": "x", "celery-task-meta-1": "x"}
    caches_on_redis.mset(foreign)
    cache.set_many({"a": 1, "b": 2})
    assert clear("*")["after"]["deleted"] == 2
    assert sorted(key.decode() for key in caches_on_redis.scan_iter()) == sorted(foreign)


def test_wildcards_in_the_prefix_are_no_wildcards(caches_on_redis: redis.Redis) -> None:
    caches_on_redis.mset({"sXXt?\\:1:a": "x", "site:1:a": "x", "s*te\\:1:a": "x"})
    caches["globs"].set("a", 1)
    assert clear("*", "globs")["after"]["deleted"] == 1
    assert caches["globs"].get("a") is None
    assert caches_on_redis.dbsize() == 3


def test_a_literal_key_with_wildcards_can_be_named() -> None:
    cache.set_many({"a[1]": 1, "a1": 2})
    assert clear("a\\[1\\]")["after"]["deleted"] == 1
    assert cache.get("a1") == 2


def test_a_cache_without_prefix_has_its_version_as_one(caches_on_redis: redis.Redis) -> None:
    caches_on_redis.set("queue", "x")
    caches["plain"].set("a", 1)
    assert clear("*", "plain")["after"]["deleted"] == 1
    assert caches_on_redis.get("queue") == b"x"


def test_thousands_of_keys_go_in_batches(caches_on_redis: redis.Redis) -> None:
    cache.set_many({f"k{index}": index for index in range(1_234)})
    cache.set("other", 1)
    caches_on_redis.config_resetstat()
    assert clear("k*")["after"]["deleted"] == 1_234
    assert cache.get("other") == 1
    calls = caches_on_redis.info("commandstats")
    assert calls["cmdstat_unlink"]["calls"] == 3
    assert not {"cmdstat_keys", "cmdstat_del", "cmdstat_flushdb", "cmdstat_flushall"} & set(calls)


def test_corrupt_entries_go_too(caches_on_redis: redis.Redis) -> None:
    caches_on_redis.set("site:1:report", b"\x80\x05broken")
    with pytest.raises(Exception, match=r"pickle|truncated|ran out|unpickl"):
        cache.get("report")
    clear("report")
    assert cache.get("report") is None


def test_a_key_function_that_hides_the_key_is_unsupported(settings: Any) -> None:
    settings.CACHES = {**settings.CACHES, "default": {
        **settings.CACHES["default"], "KEY_FUNCTION": lambda key, prefix, version: f"{prefix}{hash(key)}",
    }}  # fmt: skip
    assert clear("*")["status"] == "unsupported"
    settings.CACHES = {**settings.CACHES, "default": {
        **settings.CACHES["default"], "KEY_FUNCTION": lambda key, prefix, version: key,
    }}  # fmt: skip
    assert clear("*")["status"] == "unsupported"


@pytest.mark.parametrize("pattern", ["", None, 5, ["*"]])
def test_no_pattern_clears_nothing(pattern: Any) -> None:
    cache.set("a", 1)
    assert clear(pattern)["status"] == "failed"
    assert cache.get("a") == 1


@pytest.mark.parametrize("target", ["files", "dummy", "elsewhere"])
def test_other_caches_are_unsupported(target: str) -> None:
    assert clear("*", target)["status"] == "unsupported"


def test_it_is_done_once_however_often_it_is_brought() -> None:
    cache.set("a", 1)
    one = directive("cache_clear", pattern="*", graceful=True)
    first = desired_state.apply_one(one)
    cache.set("a", 2)
    assert desired_state.apply_one(one) == first
    desired_state.apply_desired(5, [one])
    assert cache.get("a") == 2


def test_redis_out_of_reach_fails_and_says_so(settings: Any) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9/0"}}
    told = clear("*")
    assert told["status"] == "failed"
    assert "ConnectionError" in told["reason"]


def test_caches_that_can_be_cleared_are_announced() -> None:
    assert actuators.targets("cache_clear") == [
        "default", "plain", "globs", "memory", "files", "table", "other",
    ]  # fmt: skip


# Other kinds


@pytest.fixture
def table(db: None) -> None:
    call_command("createcachetable")


@pytest.mark.parametrize("target", ["memory", "table"])
@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("catalog:*", {"catalog:1", "catalog:2", "catalog:[x]"}),
        ("catalog:?", {"catalog:1", "catalog:2"}),
        ("catalog:[12]", {"catalog:1", "catalog:2"}),
        ("catalog:[^1x]", {"catalog:2"}),
        ("catalog:[[]x]", {"catalog:[x]"}),
        ("catalog:\\[x\\]", {"catalog:[x]"}),
        ("[c]art", {"cart"}),
    ],
)
def test_patterns_mean_the_same_in_every_cache(table: None, target: str, pattern: str, gone: set[str]) -> None:
    kept = {"catalog:1", "catalog:2", "catalog:[x]", "cart", "catalog"}
    for key in kept:
        caches[target].set(key, 1)
    told = clear(pattern, target)
    assert (told["status"], told["before"]["keys"], told["after"]["deleted"]) == ("applied", len(gone), len(gone))
    assert {key for key in kept if caches[target].get(key) is None} == gone


def test_another_caches_entries_in_the_same_table_survive(table: None) -> None:
    caches["table"].set("a", 1)
    caches["other"].set("a", 1)
    assert clear("*", "table")["after"] == {"keys": 0, "deleted": 1, "pattern": "*"}
    assert (caches["table"].get("a"), caches["other"].get("a")) == (None, 1)


def test_thousands_of_rows_go_in_batches(table: None) -> None:
    caches["table"]._max_entries = 10_000
    caches["table"].set_many({f"bulk:{index}": index for index in range(1200)})
    assert clear("bulk:*", "table")["after"]["deleted"] == 1200


def test_a_file_that_is_corrupt_goes_though_keys_can_not_be_listed() -> None:
    files = caches["files"]
    files.set("catalog:1", 1)
    files.set("catalog:2", 2)
    path = Path(files._key_to_file("catalog:1"))
    path.write_bytes(path.read_bytes()[:-4] + b"xxxx")
    with pytest.raises(zlib.error) as caught:
        files.get("catalog:1")
    told = measurements.of(caught.value)["cache"]
    assert told == {"alias": "files", "key": "catalog:1", "prefix": "", "kind": "file"}
    told = clear("catalog:*", "files", key="catalog:1")
    assert (told["status"], told["after"]["deleted"]) == ("applied", 1)
    assert (files.get("catalog:1"), files.get("catalog:2")) == (None, 2)


def test_memory_is_cleared_in_each_process_and_ends_without_a_complaint() -> None:
    caches["memory"].set("a", 1)
    held = {**directive("cache_clear", "memory", pattern="a"), "scope": "process"}
    assert desired_state.apply_one(held)["status"] == "applied"
    assert caches["memory"].get("a") is None
    assert [told["status"] for told in desired_state.apply_desired(9, [])] == ["reverted"]
