"""Errors that the patient raises by itself, named as applications name them."""


class APIError(Exception):
    pass


class AuthenticationError(Exception):
    pass


class ServiceUnavailableError(Exception):
    pass


class OverloadedError(Exception):
    """More requests at a time than it can bear."""


class PriceOutdated(Exception):
    """A cached price that the page can't use."""
