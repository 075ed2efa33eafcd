import pytest
from django.test import Client
from error_logging.models import ErrorLog

@pytest.mark.django_db
def test_smoke():
    r = Client().get("/broken/")
    assert r.status_code == 400
    assert ErrorLog.objects.get(error_id=r.json()["error"]["error_id"]).error_type == "ValueError"
