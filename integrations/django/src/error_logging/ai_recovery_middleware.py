"""The public names for settings and views."""

from error_logging.context_manager import ErrorRecoveryContextManager
from error_logging.decorators import ai_error_handler
from error_logging.manual import trigger_manual_recovery
from error_logging.middleware import AIErrorRecoveryMiddleware

__all__ = [
    "AIErrorRecoveryMiddleware",
    "ErrorRecoveryContextManager",
    "ai_error_handler",
    "trigger_manual_recovery",
]
