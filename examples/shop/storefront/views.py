"""The shop's pages. None of them knows of Upright: what fails here fails as it would in any shop."""

import time

import requests
from django.conf import settings
from django.core.cache import cache
from django.db import connection, transaction
from django.db.models import F, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.csrf import ensure_csrf_cookie

from storefront.models import Product

HOLD_S = 0.3
"""How long the order pages keep their database connection: they ask the till while they have it."""
REPORT_S = 0.7
MAX_REPORT_S = 2.0


@ensure_csrf_cookie
def front(request: HttpRequest) -> HttpResponse:
    return render(
        request, "storefront/front.html", {"recovery": settings.UPRIGHT_ENABLED, "prefect_ui": settings.PREFECT_UI_URL}
    )


def healthz(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"ok": True})


def catalogue(request: HttpRequest, category: str) -> JsonResponse:
    """A page of the catalogue, from the cache where it is there."""
    key = f"catalogue:{category}"
    goods = cache.get(key)
    if goods is None:
        goods = list(Product.objects.filter(category=category).values("name", "slug", "price"))
        cache.set(key, goods)
    return JsonResponse({"category": category, "goods": goods})


def stock(request: HttpRequest) -> JsonResponse:
    """How much there is of everything, checked against the till."""
    total = Product.objects.aggregate(items=Sum("stock"))
    _ask_the_till()
    return JsonResponse(total)


def recent_orders(request: HttpRequest) -> JsonResponse:
    """What is worth the most, checked against the till."""
    worth = Product.objects.annotate(worth=F("price") * F("stock")).order_by("-worth").values("name", "worth")[:3]
    goods = list(worth)
    _ask_the_till()
    return JsonResponse({"orders": goods})


def _ask_the_till() -> None:
    # A slow peer, asked while this request's database connection is held: how small pools run dry.
    time.sleep(HOLD_S)


def sales_report(request: HttpRequest) -> JsonResponse:
    """A report over all orders. Its query takes as long as the years of data that it reads."""
    try:
        seconds = min(float(request.GET.get("seconds", REPORT_S)), MAX_REPORT_S)
    except ValueError:
        return JsonResponse({"detail": "seconds must be a number"}, status=400)
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(price * stock) FROM storefront_product, pg_sleep(%s)", [seconds])
        total = cursor.fetchone()[0]
    return JsonResponse({"sales": total})


def shipping_quote(request: HttpRequest) -> JsonResponse:
    """What the carrier asks for a parcel."""
    answer = requests.get(f"{settings.UPSTREAM_URL}/quote", timeout=2)
    answer.raise_for_status()
    return JsonResponse({"carrier": answer.json()})


def basket_total(request: HttpRequest) -> JsonResponse:
    """Has a bug: the tax of a country that the table doesn't have."""
    tax = {"NL": 0.21, "DE": 0.19}
    return JsonResponse({"total": 100 * (1 + tax[request.GET.get("country", "IS")])})


def bad_endpoint(request: HttpRequest) -> JsonResponse:
    """Asks for a table that isn't there."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM storefront_loyalty")
    return JsonResponse({"rows": cursor.rowcount})
