"""Upright in a Django application: errors are recorded, reported, and recovered from.

Everything that needs Django's settings is imported from the submodules, so that this package can be named in
INSTALLED_APPS and MIDDLEWARE before Django is set up.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
