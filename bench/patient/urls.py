"""A report that runs past its statement timeout, an error for the storm, and healthy requests."""

import os

from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path


def report(request: HttpRequest) -> HttpResponse:
    """Takes 60 ms where 40 ms are allowed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.06)")
    return JsonResponse({"report": "ok"})


def storm(request: HttpRequest) -> HttpResponse:
    if "ok" in request.GET:
        return JsonResponse({"storm": "ok"})
    raise ValueError("order 4711 could not be placed")


def healthy(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return JsonResponse({"healthy": True})


def timeout(request: HttpRequest) -> HttpResponse:
    """The statement timeout that this process's statements have now."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        (setting,) = cursor.fetchone()
    return JsonResponse({"pid": os.getpid(), "statement_timeout": setting})


urlpatterns = [
    path("timeout/", timeout),
    path("report/", report),
    path("storm/", storm),
    path("healthy/", healthy),
]
