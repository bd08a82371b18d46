"""Every refusal of the service: one tree, each with its HTTP status and code word.

ServiceError
├── NotAnImage, BadMultipart, BadRequest, NotOffered, BadHttp  400
├── Unauthorized                                      401
├── Forbidden                                         403
├── NotFound                                          404
├── MethodNotAllowed                                  405
├── BodyTooSlow, HeadersTooSlow                       408
├── DefaultModel                                      409
├── BodyTooLarge, TooManyPixels, TooComplex, TooManyParts  413
├── FormatNotAllowed                                  415
├── BadParameter                                      422
│   ├── UnknownModel (UnknownPath 404), MissingPart
│   └── BudgetTooLow, CapTooLow
├── BadBundle                                         422
├── QueueFull, RateLimited                            429
├── HeadersTooLarge                                   431
├── ClientGone                                        499
├── InternalError, Uneven                             500
├── Starting, Draining, TooManyConnections, TooBusy   503
└── DeadlineUnreachable, DeadlinePassed               504
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from models import preprocess


class ServiceError(Exception):
    """A refusal; its message is a sentence with the value, the limit and what to do."""

    status = 500
    code = "internal_error"
    retry_after_s: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})


class NotAnImage(ServiceError):
    """The bytes are no image, or only a part of one."""

    status, code = 400, "not_an_image"


class BadMultipart(ServiceError):
    """The body is not the multipart that its content type promises."""

    status, code = 400, "bad_multipart"


class BadRequest(ServiceError):
    """The body does not follow the Open Inference Protocol, or its content encoding."""

    status, code = 400, "bad_request"


class NotOffered(ServiceError):
    """A part of the Open Inference Protocol that this service does not have."""

    status, code = 400, "not_offered"


class BadHttp(ServiceError):
    """Bytes that are no HTTP."""

    status, code = 400, "bad_http"


class Unauthorized(ServiceError):
    """No key, or one that is not known."""

    status, code = 401, "unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="runtime-neural-pruning"'})


class Forbidden(ServiceError):
    """A caller's key, or another site's page, where an operator is needed."""

    status, code = 403, "forbidden"


class NotFound(ServiceError):
    """No such path."""

    status, code = 404, "not_found"


class MethodNotAllowed(ServiceError):
    """The path exists, the method does not."""

    status, code = 405, "method_not_allowed"


class BodyTooSlow(ServiceError):
    """A body that comes too slowly; what is still to come of it is not waited for."""

    status, code = 408, "body_too_slow"
    headers = MappingProxyType({"Connection": "close"})


class HeadersTooSlow(ServiceError):
    """A request whose headers were not complete in time."""

    status, code = 408, "headers_too_slow"


class DefaultModel(ServiceError):
    """The default model, which cannot be unloaded."""

    status, code = 409, "default_model"


class BodyTooLarge(ServiceError):
    """More bytes than allowed, announced or sent."""

    status, code = 413, "body_too_large"


class TooManyPixels(ServiceError):
    """More pixels than allowed, by the image's header."""

    status, code = 413, "too_many_pixels"


class TooComplex(ServiceError):
    """An image in so many pieces that decoding it would hold up the others."""

    status, code = 413, "too_complex"


class TooManyParts(ServiceError):
    """More multipart parts than allowed."""

    status, code = 413, "too_many_parts"


class FormatNotAllowed(ServiceError):
    """A known file format, or a content encoding, that is not read."""

    status, code = 415, "format_not_allowed"


class BadParameter(ServiceError):
    """A parameter that is unknown, not of its type or outside its range."""

    status, code = 422, "bad_parameter"


class UnknownModel(BadParameter):
    """No bundle of this name is served."""

    code = "unknown_model"


class UnknownPath(UnknownModel):
    """The same where the path names it, not a parameter."""

    status = 404


class MissingPart(BadParameter):
    """A multipart body without a part named `file`."""

    code = "missing_part"


class BudgetTooLow(BadParameter):
    """A budget below what the bundle can reach."""

    code = "budget_too_low"


class CapTooLow(BadParameter):
    """A cap below the cheapest path."""

    code = "cap_too_low"


class BadBundle(ServiceError):
    """A bundle on disk that cannot be served."""

    status, code = 422, "bad_bundle"


class QueueFull(ServiceError):
    """More images are waiting than allowed."""

    status, code = 429, "queue_full"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClientGone(ServiceError):
    """The client hung up before its answer; nobody reads this one."""

    status, code = 499, "client_gone"


class RateLimited(ServiceError):
    """More images than the client may send in this time."""

    status, code = 429, "rate_limited"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(wait_s))


class HeadersTooLarge(ServiceError):
    """More bytes of headers than allowed."""

    status, code = 431, "headers_too_large"


class InternalError(ServiceError):
    """A mistake of ours; the log has the traceback under the request id."""


class Uneven(ServiceError):
    """A change was done in some processes of the service, and not in all."""

    status, code = 500, "uneven"


class Starting(ServiceError):
    """The bundles are still being loaded."""

    status, code, retry_after_s = 503, "starting", 1


class TooBusy(ServiceError):
    """The requests in flight hold as many bytes as they may."""

    status, code, retry_after_s = 503, "too_busy", 1


class Draining(ServiceError):
    """The service is about to stop; what is in flight is finished."""

    status, code, retry_after_s = 503, "draining", 1


class TooManyConnections(ServiceError):
    """Every connection that the service may hold is busy with a request."""

    status, code, retry_after_s = 503, "too_many_connections", 1


class DeadlineUnreachable(ServiceError):
    """Even the cheapest answer would be late; nothing was computed."""

    status, code = 504, "deadline_unreachable"


class DeadlinePassed(ServiceError):
    """It seemed that there was time enough, and there was not."""

    status, code = 504, "deadline_passed"


def all_errors(above: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """Every refusal below one of the tree."""
    for error in above.__subclasses__():
        yield error
        yield from all_errors(error)


def from_image_error(error: preprocess.ImageError) -> ServiceError:
    """The refusal that answers an image which cannot be read."""
    for kind, refusal in _IMAGE_ERRORS.items():
        if isinstance(error, kind):
            return refusal(str(error))
    return NotAnImage(str(error))


_IMAGE_ERRORS: dict[type[preprocess.ImageError], type[ServiceError]] = {
    preprocess.FormatNotAllowed: FormatNotAllowed,
    preprocess.TooManyPixels: TooManyPixels,
    preprocess.TooComplex: TooComplex,
}
