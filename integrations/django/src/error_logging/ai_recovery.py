"""The same names as `error_logging.ai_error_recovery`."""

from error_logging.ai_error_recovery import AutoRecoveryExecutor, RecoveryStrategy

__all__ = ["AutoRecoveryExecutor", "RecoveryStrategy"]
