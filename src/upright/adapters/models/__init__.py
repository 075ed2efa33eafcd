"""Trained models: their files, in a project's models/ and in the database."""

from upright.adapters.models.challenger_file import dump, load
from upright.adapters.models.library import ModelLibrary

__all__ = ["ModelLibrary", "dump", "load"]
