"""Errors of requests, as OpenAI's clients read them: a status, and an object with message, type, param and code."""

from collections.abc import Mapping


class ApiError(Exception):
    """What a request is answered with instead of a result."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = (
            status,
            message,
            param,
            code,
            dict(headers or {}),
        )

    @property
    def body(self) -> dict:
        """The error object."""
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The error of a request that breaks a rule."""
    return ApiError(400, message, param, code)


def _kind(status):
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
