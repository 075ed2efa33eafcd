"""timeout_increase on a real PostgreSQL: for each statement of this process, and for nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import django.db
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

from error_logging import actuators, desired_state
from error_logging.actuators import timeout
from error_logging.testing import directive

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def short_timeout(django_db_blocker: Any) -> Iterator[None]:
    """What the database itself allows: 5 s, so that no test depends on it by chance."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER DATABASE test_site SET statement_timeout = '5s'")
    fresh()
    yield
    desired_state.reset()
    with connection.cursor() as cursor:
        cursor.execute("ALTER DATABASE test_site RESET statement_timeout")
    fresh()


def fresh() -> None:
    connection.close()
    connection.close_pool()


def now() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        return str(cursor.fetchone()[0])


def session() -> str:
    """The raw connection's own setting, around Django's wrappers."""
    connection.ensure_connection()
    row = connection.connection.execute("SELECT current_setting('statement_timeout')").fetchone()
    return str(row[0])


def increase(timeout_ms: int = 20_000, **more: Any) -> dict[str, Any]:
    return desired_state.apply_one(directive("timeout_increase", timeout_ms=timeout_ms, **more))


def test_it_is_measured_before_and_after_and_at_its_end() -> None:
    told = increase()
    assert told["status"] == "applied"
    assert (told["before"], told["after"]) == ({"statement_timeout_ms": 5000}, {"statement_timeout_ms": 20_000})
    assert now() == "20s"
    (ended,) = desired_state.apply_desired(2, [])
    assert ended["status"] == "reverted"
    assert ended["after"] == {"statement_timeout_ms": 5000}
    assert now() == "5s"


def test_a_slow_statement_gets_its_time() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER DATABASE test_site SET statement_timeout = '50ms'")
    fresh()
    with pytest.raises(django.db.OperationalError, match="statement timeout"), connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.2)")
    increase()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.2)")


def test_it_does_not_leak_through_the_pool() -> None:
    increase()
    assert now() == "20s"
    assert session() == "5s"
    with transaction.atomic():
        assert now() == "20s"
    assert session() == "5s"


def test_it_holds_in_blocks_and_savepoints() -> None:
    increase()
    with transaction.atomic():
        assert now() == "20s"
        with transaction.atomic():
            assert now() == "20s"
        assert now() == "20s"


def test_writes_are_committed_as_ever() -> None:
    increase()
    user = User.objects.create(username="ada")
    User.objects.filter(pk=user.pk).update(first_name="Ada")
    connection.close()
    assert User.objects.get().first_name == "Ada"
    with transaction.atomic():
        user.delete()
        transaction.set_rollback(True)
    assert User.objects.count() == 1


def test_a_large_result_can_be_iterated_outside_of_a_transaction() -> None:
    increase()
    User.objects.bulk_create(User(username=f"u{index}") for index in range(50))
    assert sum(1 for _ in User.objects.iterator(chunk_size=7)) == 50


def test_statements_that_bear_no_transaction_are_left_alone() -> None:
    increase()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM auth_user")
        cursor.execute("CREATE INDEX CONCURRENTLY upright_test ON auth_user (first_name)")
        cursor.execute("DROP INDEX CONCURRENTLY upright_test")


def test_hooks_after_a_commit_run_once() -> None:
    increase()
    ran: list[int] = []
    with transaction.atomic():
        transaction.on_commit(lambda: ran.append(1))
        User.objects.create(username="ada")
    assert ran == [1]


def test_the_views_own_setting_is_respected_for_as_long_as_it_lasts() -> None:
    increase()
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '1s'")
        assert now() == "1s"
        with transaction.atomic():
            assert now() == "1s"
    assert now() == "20s"
    with transaction.atomic():
        assert now() == "20s"


def test_the_same_block_object_can_be_used_again() -> None:
    """`@transaction.atomic` enters one and the same object for each call."""
    increase()

    @transaction.atomic
    def view(own: bool) -> str:
        if own:
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('statement_timeout', '1s', true)")
        return now()

    assert [view(True), view(False)] == ["1s", "20s"]


def test_a_setting_for_the_session_is_respected_until_it_is_reset() -> None:
    increase()
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '1s'")
        assert now() == "1s"
        cursor.execute("RESET statement_timeout")
    assert now() == "20s"


def test_in_an_aborted_transaction_the_application_sees_djangos_exception() -> None:
    increase()
    with transaction.atomic(), connection.cursor() as cursor:
        with pytest.raises(django.db.ProgrammingError):
            cursor.execute("SELECT nothing FROM nowhere")
        with pytest.raises(django.db.InternalError):
            cursor.execute("SELECT 1")
        transaction.set_rollback(True)


def test_what_a_rolled_back_savepoint_had_set_is_over() -> None:
    increase()
    with transaction.atomic():
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = '1s'")
            transaction.set_rollback(True)
        assert now() == "20s"


def test_a_newer_directive_takes_the_place_of_the_older(settings: Any) -> None:
    increase(10_000, version=1)
    told = increase(20_000, version=2)
    assert told["before"] == {"statement_timeout_ms": 10_000}
    assert now() == "20s"
    desired_state.reset()
    assert now() == "5s"


def test_what_the_settings_do_not_allow_is_refused_and_changes_nothing(settings: Any) -> None:
    settings.UPRIGHT_LIMITS = {"timeout_increase": {"timeout_ms": (1, 15_000)}}
    told = increase(20_000)
    assert told["status"] == "refused"
    assert "15000" in told["reason"]
    settings.UPRIGHT_ALLOWED_STRATEGIES = ["retry"]
    assert increase(10_000)["status"] == "refused"
    settings.UPRIGHT_ENABLED = False
    assert increase(10_000)["status"] == "refused"
    assert now() == "5s"
    assert not timeout.active()


@pytest.mark.parametrize("value", ["5000", True, 0, -1, None, 1.5, float("nan")])
def test_values_that_are_none_fail(value: Any) -> None:
    told = desired_state.apply_one(directive("timeout_increase", timeout_ms=value))
    assert told["status"] in ("failed", "refused")
    assert not timeout.active()


def test_another_database_is_unsupported() -> None:
    assert increase(target="elsewhere")["status"] == "unsupported"


def hold_all() -> list[Any]:
    pool = connection.pool
    return [pool.getconn() for _ in range(pool.max_size)]


def test_where_it_cannot_be_measured_it_is_not_left_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """An acknowledgement says failed, and the directive is not held: nothing would ever revert it."""
    real, calls = timeout._measured, []

    def second_fails(alias: str) -> dict[str, Any]:
        calls.append(alias)
        if len(calls) == 2:
            raise django.db.OperationalError("couldn't get a connection")
        return real(alias)

    increase(10_000, version=1)
    monkeypatch.setattr(timeout, "_measured", second_fails)
    assert increase(20_000, version=2)["status"] == "failed"
    monkeypatch.undo()
    assert now() == "10s"  # as the one that is held says
    desired_state.reset()
    assert now() == "5s"


def test_it_ends_also_while_the_pool_is_exhausted() -> None:
    increase()
    connection.close()
    held = hold_all()
    try:
        (ended,) = desired_state.apply_desired(2, [])
    finally:
        for one in held:
            connection.pool.putconn(one)
    assert ended["status"] == "reverted"
    assert "measured" in ended["reason"]
    assert not timeout.active()
    assert now() == "5s"


def test_other_threads_obey_once_they_are_prepared() -> None:
    import threading

    increase()
    seen: list[str] = []

    def work() -> None:
        actuators.prepare_thread()
        seen.append(now())
        connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["20s"]
