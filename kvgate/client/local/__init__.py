"""A gateway on the same host, through memory that both map: attach once, then copy or use what is granted."""

from kvgate.client.local.attachment import Attachment
from kvgate.client.local.device_grant import DeviceGrant
from kvgate.client.local.gpu import Gpu, open_gpu
from kvgate.client.local.grant import Grant
from kvgate.client.local.reservation import Reservation

__all__ = ["Attachment", "DeviceGrant", "Gpu", "Grant", "Reservation", "open_gpu"]
