"""Pages of the test site; tests bring more with `settings.ROOT_URLCONF` or `override_settings`."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def fine(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError("it is broken")


urlpatterns = [
    path("fine/", fine),
    path("broken/", broken),
    path("admin/", admin.site.urls),
    path("api/", include("error_logging.urls")),
]
