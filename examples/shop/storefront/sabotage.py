"""Breaks the shop for real, from the outside of its own code: for the buttons on the front page."""

import json
import subprocess
import sys

import redis
import requests
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_POST

CORRUPT = b"\x80\x05\x95not a pickle any more"
FOREIGN_KEY = "warehouse:lock"
"""A key in the same Redis that is nobody's cache."""


def raw_key(key: str) -> str:
    """A key as Django's cache writes it."""
    return f"{settings.CACHES['default']['KEY_PREFIX']}:1:{key}"


@require_POST
def corrupt_cache(request: HttpRequest, category: str) -> JsonResponse:
    """Overwrite one cached page behind the cache's back."""
    with redis.Redis.from_url(settings.CACHE_URL) as client:
        client.set(FOREIGN_KEY, "held by the warehouse")
        client.set(raw_key("prices:eur"), b"1")
        client.set(raw_key(f"catalogue:{category}"), CORRUPT)
    return JsonResponse({"corrupted": raw_key(f"catalogue:{category}")})


@require_POST
def arm_upstream(request: HttpRequest) -> JsonResponse:
    """Let the carrier hang up on its next two callers."""
    answer = requests.post(f"{settings.UPSTREAM_URL}/arm", params={"resets": 2}, timeout=2)
    answer.raise_for_status()
    return JsonResponse(answer.json())


@require_POST
def send_crowd(request: HttpRequest) -> JsonResponse:
    """Sixteen clients for four seconds, from a process of their own: a browser opens too few connections."""
    program = settings.BASE_DIR / "crowd.py"
    command = [sys.executable, str(program), f"http://{request.get_host()}", "16", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=True)  # noqa: S603 - our own program
    return JsonResponse(json.loads(done.stdout))
