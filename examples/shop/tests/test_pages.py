"""The shop itself, on a good day."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.test import Client

pytestmark = pytest.mark.django_db


@pytest.fixture
def client() -> Client:
    return Client()


def test_the_front_page_has_a_button_for_each_fault(client: Client) -> None:
    page = client.get("/").content.decode()
    for fault in ("pool", "report", "cache", "upstream", "bug"):
        assert f'data-fault="{fault}"' in page


def test_the_catalogue_is_served_from_the_cache_the_second_time(client: Client, django_assert_num_queries) -> None:
    first = client.get("/catalogue/books/").json()
    assert [goods["slug"] for goods in first["goods"]] == ["field-notes", "on-resilience", "the-long-repair"]
    with django_assert_num_queries(0):
        assert client.get("/catalogue/books/").json() == first


def test_a_short_report_passes(client: Client) -> None:
    assert float(client.get("/reports/sales/?seconds=0").json()["sales"]) > 0


def test_a_report_that_is_no_number_is_told(client: Client) -> None:
    assert client.get("/reports/sales/?seconds=long").status_code == 400


def test_configuration_is_sound() -> None:
    call_command("check", fail_level="WARNING")


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
