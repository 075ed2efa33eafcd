"""What tests of runbooks, strategies and applications need: in-memory ports and a scripted application."""
