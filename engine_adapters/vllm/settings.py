"""What `kv_connector_extra_config` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine_adapters.nixl.config import NixlConfig
from kvgate.chunk.key import check_bucket
from kvgate.client.credentials import Credentials, find_credentials
from kvgate.codec.installed import codec_named, installed_names
from kvgate.config import MiB, Seconds, Size, build, option


@dataclass(frozen=True)
class Settings:
    """The connector's options. Raises ConfigError, by `read_settings`, for what cannot be.

    There is none for the key pair: vLLM writes its configuration to its log.
    """

    bucket: str = option(help="the bucket for chunks; it must exist")
    url: str | None = option(default=None, help="where the gateway listens; else as in `credentials`, else KVGATE_URL")
    credentials: Path | None = option(
        default=None,
        help="a file as `kvgate serve` writes it, with the key pair; else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )
    chunk_tokens: int = option(default=256, help="tokens a chunk; a multiple of the engine's block size")
    model_name: str | None = option(default=None, help="the model in the space; else as vLLM knows it")
    weights: str | None = option(default=None, help="revision or digest of the weights; else found out from the files")
    save: Literal["all", "lazy", "none"] = option(
        default="all", help="store every full chunk, only what vLLM is about to evict, or nothing"
    )
    lossless: str = option(
        default="none", help="the codec that makes chunks smaller which are stored; see docs/codecs.md"
    )
    save_layerwise: bool = option(default=False, help="copy each layer out as soon as it is computed")
    load: Literal["async", "layerwise", "none"] = option(
        default="async",
        help="load between steps, or layer by layer while the step that needs it runs, or not at all",
    )
    layers_at_once: int = option(default=8, help="layers a layer-wise load fetches together")
    lookup_deadline: Seconds = option(default=Seconds(1.0), help="the longest that looking a prompt up may take")
    load_deadline: Seconds = option(default=Seconds(5.0), help="the longest that loading a prompt may take")
    save_deadline: Seconds = option(default=Seconds(30.0), help="the longest that storing a chunk may take")
    lease: Seconds = option(default=Seconds(60.0), help="how long found chunks are kept for a request that waits")
    staging: Size = option(default=Size(512 * MiB), help="host memory a worker for chunks on their way")
    load_threads: int = option(default=2, help="requests that a worker loads at the same time")
    save_threads: int = option(default=2, help="chunks that a worker stores at the same time")
    lookup_threads: int = option(default=2, help="prompts that are looked up at the same time")
    known_chunks: int = option(default=65536, help="chunks that the engine remembers to be stored")
    max_lookups: int = option(default=4096, help="prompts that may wait to be looked up; more are not")
    weights_may_change: bool = option(
        default=True,
        help="rest for good once vLLM resets the connector's cache, as it does for new weights in a running engine",
    )
    wait_for_handoff: Seconds = option(
        default=Seconds(5.0), help="the longest that a decode instance waits for what a prefill instance hands over"
    )

    direct: NixlConfig | None = option(
        default=None, help="also hand KV over to other instances directly, with NIXL; see docs/pd.md"
    )

    def __post_init__(self) -> None:
        check_bucket(self.bucket)
        if self.lossless != "none":
            if self.lossless not in installed_names():
                raise ValueError(f"lossless is {self.lossless!r}; known: none, {', '.join(installed_names())}")
            codec_named(self.lossless)  # raises now what would be missing later
        for name in ("chunk_tokens", "layers_at_once", "load_threads", "save_threads", "lookup_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lookup_deadline", "load_deadline", "save_deadline", "lease"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be longer than 0")

    def find_credentials(self) -> Credentials:
        """Where the gateway is, and the key pair. Raises ConfigError."""
        return find_credentials(self.url, path=self.credentials)


def read_settings(extra: Mapping[str, object]) -> Settings:
    """The settings that a mapping holds. Raises ConfigError naming the key."""
    return build(Settings, extra, "kv_connector_extra_config")
