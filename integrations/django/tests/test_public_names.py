"""What users may rely on: the names that the guide imports, what a module exports, and what the distribution holds."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from django.apps import apps
from django.urls import reverse

from error_logging.models import ErrorLog

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "error_logging"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("error_logging.ai_recovery_middleware", "AIErrorRecoveryMiddleware"),
        ("error_logging.ai_recovery_middleware", "ai_error_handler"),
        ("error_logging.ai_recovery_middleware", "ErrorRecoveryContextManager"),
        ("error_logging.ai_recovery_middleware", "trigger_manual_recovery"),
        ("error_logging.models", "ErrorLog"),
        ("error_logging.ai_error_recovery", "RecoveryStrategy"),
        ("error_logging.ai_error_recovery", "AutoRecoveryExecutor"),
        ("error_logging.ai_recovery", "RecoveryStrategy"),
        ("error_logging.testing", "ScriptedService"),
    ],
)
def test_a_name_of_the_guide(module: str, name: str) -> None:
    assert callable(getattr(importlib.import_module(module), name))


def test_a_strategy_is_one_class_under_both_names() -> None:
    from error_logging import ai_error_recovery, ai_recovery

    assert ai_error_recovery.RecoveryStrategy is ai_recovery.RecoveryStrategy


def test_a_strategy_is_added_as_printed() -> None:
    from error_logging.ai_error_recovery import AutoRecoveryExecutor, RecoveryStrategy

    # Add custom strategy
    class CustomStrategy(RecoveryStrategy):
        CUSTOM = "custom_strategy"

    # Implement in AutoRecoveryExecutor
    class Executor(AutoRecoveryExecutor):
        def _execute_custom_strategy(self, action):
            # Your custom recovery logic
            return {'success': True, 'message': 'Custom recovery'}  # fmt: skip

    assert CustomStrategy.names() == [*RecoveryStrategy.names(), "custom_strategy"]
    assert len(RecoveryStrategy.names()) == 10
    done = Executor().execute({"strategy": CustomStrategy.CUSTOM, "target": "", "values": {}})
    assert done == {"success": True, "message": "Custom recovery"}
    with pytest.raises(NotImplementedError, match="_execute_custom_strategy"):
        AutoRecoveryExecutor().execute({"strategy": "custom_strategy"})


@pytest.mark.parametrize("module", ["ai_recovery_middleware", "ai_recovery", "testing", "recording"])
def test_what_a_module_exports_is_there(module: str) -> None:
    imported = importlib.import_module(f"error_logging.{module}")
    assert sorted(set(imported.__all__)) == sorted(imported.__all__)
    assert not [name for name in imported.__all__ if not hasattr(imported, name)]


def test_everything_that_the_test_helper_shows_is_exported() -> None:
    from error_logging import testing

    shown = {
        name
        for name, found in vars(testing).items()
        if getattr(found, "__module__", "") == testing.__name__ and not name.startswith("_")
    }
    assert shown - {"Scripted", "Kind"} == set(testing.__all__)


def test_the_parameters_of_the_guide() -> None:
    from error_logging.ai_recovery_middleware import ErrorRecoveryContextManager, trigger_manual_recovery

    assert "service" in inspect.signature(ErrorRecoveryContextManager).parameters
    assert list(inspect.signature(trigger_manual_recovery).parameters) == ["error_id"]


def test_the_addresses_of_the_guide() -> None:
    assert reverse("error_logging:summary") == "/api/errors/summary/"
    assert reverse("error_logging:trigger") == "/api/errors/recovery/trigger/"
    assert reverse("error_logging:test-error") == "/api/test-error/"


def test_the_app_is_migrated_as_the_guide_says() -> None:
    assert apps.get_app_config("error_logging").label == "error_logging"
    assert ErrorLog._meta.db_table == "error_logging_errorlog"
    assert sorted(one.name for one in (PACKAGE / "migrations").glob("0*.py")) == ["0001_initial.py"]


def test_the_package_can_be_named_in_settings_before_django_is_set_up() -> None:
    code = (
        "import sys, error_logging, error_logging.ai_error_recovery, error_logging.testing\n"
        "assert error_logging.__version__\n"
        "assert not {'upright', 'prefect', 'pydantic', 'sklearn', 'sqlalchemy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_serving_brings_no_test_framework_along() -> None:
    code = (
        "import sys, django\n"
        "from django.conf import settings\n"
        "settings.configure(ROOT_URLCONF='error_logging.urls', MIDDLEWARE=['error_logging.ai_recovery_middleware."
        "AIErrorRecoveryMiddleware'], INSTALLED_APPS=['django.contrib.contenttypes', 'django.contrib.auth',"
        " 'error_logging'])\n"
        "django.setup()\n"
        "from django.core.handlers.wsgi import WSGIHandler\n"
        "WSGIHandler()\n"
        "assert 'unittest' not in sys.modules, 'unittest'\n"
        "assert 'django.test' not in sys.modules, 'django.test'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    code = f"import os; os.chdir({str(PROJECT)!r}); import hatchling.build as b; b.build_wheel({str(place)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    (built,) = place.glob("*.whl")
    return built


class TestTheDistribution:
    def test_it_holds_the_package_and_nothing_else(self, wheel: Path) -> None:
        inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        sources = {
            str(path.relative_to(PACKAGE.parent))
            for path in PACKAGE.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert inside == sources
        assert {"error_logging/py.typed", "error_logging/testing.py"} <= inside

    def test_it_needs_django_an_http_client_and_what_actuators_are_made_of(self) -> None:
        needed = metadata.requires("django-upright") or []
        assert {one.split(">")[0].lower() for one in needed if "extra ==" not in one} == {
            "django",
            "limits",
            "pybreaker",
            "urllib3",
        }

    def test_its_licence_comes_along(self, wheel: Path) -> None:
        assert any(name.endswith("LICENSE") for name in zipfile.ZipFile(wheel).namelist())

    def test_it_works_from_the_wheel_alone(self, wheel: Path, tmp_path: Path) -> None:
        """Actuators load what they are made of when they act: nothing but Django and urllib3, as they are here."""
        venv.create(tmp_path / "env", with_pip=False)
        python = tmp_path / "env" / "bin" / "python"
        site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        for name in ("django", "asgiref", "sqlparse", "urllib3"):
            spec = importlib.import_module(name).__spec__
            assert spec is not None
            assert spec.origin is not None
            (site / name).symlink_to(Path(spec.origin).parent)
        code = (
            "from django.conf import settings\n"
            "settings.configure(ROOT_URLCONF='error_logging.urls', ALLOWED_HOSTS=['*'], UPRIGHT_TEST_ERROR=True,\n"
            "  MIDDLEWARE=['error_logging.ai_recovery_middleware.AIErrorRecoveryMiddleware'],\n"
            "  INSTALLED_APPS=['django.contrib.contenttypes', 'django.contrib.auth', 'error_logging'],\n"
            "  DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}},\n"
            f"  UPRIGHT_SPOOL_DIR={str(tmp_path / 'spool')!r})\n"
            "import django; django.setup()\n"
            "from django.core.management import call_command\n"
            "call_command('migrate', verbosity=0)\n"
            "from django.test import Client\n"
            "from error_logging.testing import ScriptedService, recovered\n"
            "from error_logging.models import ErrorLog\n"
            "with ScriptedService() as service, service.connected():\n"
            "    service.on_error(recovered())\n"
            "    answer = Client().post('/test-error/').json()\n"
            "assert answer['recovery']['success'], answer\n"
            "assert ErrorLog.objects.get().resolved\n"
        )
        subprocess.run([str(python), "-I", "-c", code], check=True)
