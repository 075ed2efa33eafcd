"""The endpoints; include them under `api/`: `path("api/", include("error_logging.urls"))`."""

from django.urls import path

from error_logging import views

app_name = "error_logging"
urlpatterns = [
    path("errors/summary/", views.summary, name="summary"),
    path("errors/recovery/trigger/", views.trigger, name="trigger"),
    path("test-error/", views.test_error, name="test-error"),
]
