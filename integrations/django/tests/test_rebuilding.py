"""A value that is missing is made by one caller: with real processes and threads on a real Redis."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache

from error_logging.rebuilding import LOCK_SUFFIX, RebuiltOnce, get_or_rebuild

CALLER = """
import sys, django
from django.conf import settings
backend = "django.core.cache.backends.redis.RedisCache"
settings.configure(CACHES={"default": {"BACKEND": backend, "LOCATION": sys.argv[1]}})
from concurrent.futures import ThreadPoolExecutor
from django.core.cache import cache
from error_logging.rebuilding import get_or_rebuild
import redis, time
server = redis.Redis.from_url(sys.argv[1])

def make():
    server.incr("made")
    time.sleep(0.2)
    return 42

sys.stdin.readline()
with ThreadPoolExecutor(8) as threads:
    found = list(threads.map(lambda _: get_or_rebuild(cache, "hot", make), range(8)))
assert found == [42] * 8, found
"""


class Cache(RebuiltOnce, RedisCache):
    pass


def test_of_many_callers_in_several_processes_one_makes_it(redis_cache: str) -> None:
    with redis.Redis.from_url(redis_cache) as server:
        server.delete("made", ":1:hot")
        callers = [
            subprocess.Popen([sys.executable, "-c", CALLER, redis_cache], stdin=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for caller in callers:
            assert caller.stdin is not None
            caller.stdin.write("go\n")
            caller.stdin.close()
        assert [caller.wait(60) for caller in callers] == [0, 0, 0]
        assert server.get("made") == b"1"


def test_a_backend_with_it_does_so_by_itself(redis_cache: str, settings: Any) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "BACKEND": f"{__name__}.Cache"}}
    made: list[int] = []
    gate = threading.Barrier(6)

    def ask(_: int) -> int:
        gate.wait(10)
        try:
            return caches["default"].get_or_set("hot-backend", lambda: made.append(1) or 42, 60)
        finally:
            caches["default"].close()

    caches["default"].delete("hot-backend")
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(6))) == [42] * 6
    assert made == [1]
    assert caches["default"].get("hot-backend" + LOCK_SUFFIX) is None


def test_where_the_maker_fails_the_next_one_makes_it(redis_cache: str) -> None:
    cache = caches["default"]
    cache.delete("hot-failing")
    with pytest.raises(ZeroDivisionError):
        get_or_rebuild(cache, "hot-failing", lambda: 1 // 0)
    assert get_or_rebuild(cache, "hot-failing", lambda: 42) == 42


def test_a_maker_that_died_holds_nobody_up_for_ever(redis_cache: str) -> None:
    cache = caches["default"]
    cache.delete("hot-dead")
    cache.set("hot-dead" + LOCK_SUFFIX, "of a process that is gone", 30)
    assert get_or_rebuild(cache, "hot-dead", lambda: 42, patience_s=0.05) == 42
    assert cache.get("hot-dead" + LOCK_SUFFIX) == "of a process that is gone"
    cache.delete("hot-dead" + LOCK_SUFFIX)


@pytest.mark.parametrize("value", [None, 0, ""])
def test_an_empty_value_is_a_value(redis_cache: str, value: Any) -> None:
    cache = caches["default"]
    cache.delete("hot-empty")
    made: list[int] = []
    for _ in range(2):
        assert get_or_rebuild(cache, "hot-empty", lambda: (made.append(1), value)[1]) == value
    assert made == [1]
