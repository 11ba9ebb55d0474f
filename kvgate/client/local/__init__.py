"""A gateway on the same host, through memory that both map: attach once, then copy or use what is granted."""

from kvgate.client.local.attachment import Attachment
from kvgate.client.local.grant import Grant
from kvgate.client.local.reservation import Reservation

__all__ = ["Attachment", "Grant", "Reservation"]
