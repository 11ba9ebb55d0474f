from __future__ import annotations

from typing import ClassVar

from kvgate.chunk.foreign.base import ForeignKey
from kvgate.chunk.foreign.lmcache import LMCacheParser
from tests.contracts.key_parser import KeyParserContract

MODEL = "meta-llama_Llama-3.1-8B-Instruct"


class TestLMCacheParser(KeyParserContract):
    name = "lmcache"
    parser = LMCacheParser
    accepted: ClassVar = {
        f"{MODEL}@1@0@2f1c6a3b9d0e4f57@bfloat16": ForeignKey("lmcache", MODEL, "1@0@bfloat16", "2f1c6a3b9d0e4f57"),
        f"{MODEL}@1@0@3@bfloat16": ForeignKey("lmcache", MODEL, "1@0@bfloat16", "3"),
        # a hash of Python's own is a signed integer
        f"{MODEL}@1@0@-71b2a@bfloat16": ForeignKey("lmcache", MODEL, "1@0@bfloat16", "-71b2a"),
        f"{MODEL}@8@7@2f1c6a3b9d0e4f57@fp8_e4m3fn": ForeignKey("lmcache", MODEL, "8@7@fp8_e4m3fn", "2f1c6a3b9d0e4f57"),
        f"{MODEL}@1@0@3@half@17": ForeignKey("lmcache", MODEL, "1@0@half@17", "3"),
        f"{MODEL}@1@0@3@half@17@user%7@team%a b": ForeignKey("lmcache", MODEL, "1@0@half@17@user%7@team%a b", "3"),
        f"m@1@0@{'0a' * 32}@uint8@user%": ForeignKey("lmcache", "m", "1@0@uint8@user%", "0a" * 32),
    }
    runs: ClassVar = [(f"{MODEL}@1@0@2f1c6a3b9d0e4f57@bfloat16", f"{MODEL}@1@0@-71b2a@bfloat16")]
    refused: ClassVar = [
        "meta-llama/Llama@1@0@3@bfloat16",  # it flattens slashes
        f"{MODEL}@1@0@3@bf16",
        f"{MODEL}@1@0@3",
        f"{MODEL}@01@0@3@half",
        f"{MODEL}@1@0@3F@half",
        f"{MODEL}@1@0@-0{'1' * 16}@half",
        f"{MODEL}@1@0@3@half@user",
        "@1@0@3@half",
        f"{'m' * 256}@1@0@3@half",
    ]
