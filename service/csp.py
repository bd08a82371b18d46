"""Content-Security-Policy: what a page may load, and that no other site may frame it."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

HEADER = "Content-Security-Policy"

_NOBODY = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

# Of answers that are no page, should a browser show one.
NO_PAGE = f"default-src 'none'; {_NOBODY}"

_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def page_policy(html: str) -> str:
    """The policy of a page that loads from this service alone.

    Of inline scripts those that the page now has may run, by their digests, and no other. Styles
    may be inline; images may also be `data:` or chosen by the user.
    """
    digests = (b64encode(sha256(script.encode()).digest()) for script in _SCRIPT.findall(html))
    scripts = " ".join(["'self'", *(f"'sha256-{digest.decode()}'" for digest in digests)])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; connect-src 'self'; {_NOBODY}"
    )
