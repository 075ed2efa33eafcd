"""A report that runs past its statement timeout, an error for the storm, and healthy requests."""

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


urlpatterns = [path("report/", report), path("storm/", storm), path("healthy/", healthy)]
