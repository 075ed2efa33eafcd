"""The distribution django-upright: built, installed into a clean environment, and light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("django", "asgiref", "sqlparse", "urllib3")
"""All that may be needed: Django with what it needs itself, and an HTTP client."""
USE = """
import logging, sys, tempfile
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["testserver"], USE_TZ=True, ROOT_URLCONF="error_logging.urls",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "error_logging"],
    MIDDLEWARE=["error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware"], UPRIGHT_TEST_ERROR=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    UPRIGHT_SPOOL_DIR=tempfile.mkdtemp(), UPRIGHT_URL="http://127.0.0.1:9", UPRIGHT_SECRET="whsec_" + "A" * 40,
)
logging.disable()
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
call_command("check")
call_command("makemigrations", check=True, verbosity=0)
answer = Client().post("/test-error/", headers={"X-Service": "django"})
import error_logging, error_logging.testing
from error_logging.ai_error_recovery import RecoveryStrategy
from error_logging.ai_recovery import RecoveryStrategy
from error_logging.ai_recovery_middleware import (
    AIErrorRecoveryMiddleware, ErrorRecoveryContextManager, ai_error_handler, trigger_manual_recovery,
)
from error_logging.models import ErrorLog
assert answer.json()["error"]["error_id"] == str(ErrorLog.objects.get().error_id), answer.content
heavy = {"upright", "prefect", "sklearn", "numpy", "pydantic", "sqlalchemy", "fastapi", "psycopg", "redis"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(error_logging.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = made.glob("django_upright-*.whl")
    return found


def test_the_wheel_holds_the_app_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("/METADATA")]
        needs = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist:")]
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"error_logging", "django_upright"}
    assert {"error_logging/py.typed", "error_logging/migrations/0001_initial.py"} <= set(names)
    assert not [name for name in names if Path(name).name.startswith("test_") or "__pycache__" in name]
    needed = sorted(line.split(":")[1].strip().lower() for line in needs)
    assert needed == ["django>=5.2", "limits>=5", "pybreaker>=1.2", "urllib3>=2.2"]


def test_it_works_with_django_and_urllib3_alone(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    for name in NEEDED:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (packages / name).symlink_to(Path(spec.origin).parent)
    told = subprocess.run(
        [python, "-I", "-W", "error", "-c", USE], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip().endswith(str(packages / "error_logging" / "__init__.py"))
