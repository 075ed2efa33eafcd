"""Tasks, and the queue of each instance."""

from __future__ import annotations

import time

from celery import Celery
from django.conf import settings

QUEUE = f"{settings.WHO}-work"
app = Celery("patient", broker=settings.CELERY_BROKER, backend=settings.CELERY_BROKER)
app.conf.update(
    task_routes=("error_logging.celery.route",),
    task_default_queue=QUEUE,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="patient.chore", ignore_result=True)
def chore(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="patient.price")
def price() -> int:
    return 42


@app.task(name="patient.slip")
def slip() -> str:
    return "slip"
