"""Times from the moment a view raises to the moment its answer leaves, in the response header `X-Bench-Ms`."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse


class Raised:
    """Innermost middleware: its process_exception is the first to see the exception."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        request.bench_raised = time.perf_counter()  # type: ignore[attr-defined]


class Answered:
    """Outermost middleware."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        raised = getattr(request, "bench_raised", None)
        if raised is not None:
            response["X-Bench-Ms"] = f"{(time.perf_counter() - raised) * 1000:.3f}"
        return response
