"""A view that always fails."""

from django.http import HttpRequest, HttpResponse
from django.urls import path


def view(request: HttpRequest) -> HttpResponse:
    raise ValueError("bench: order 4711 could not be placed")


urlpatterns = [path("", view)]
