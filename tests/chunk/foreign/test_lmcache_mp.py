from __future__ import annotations

from typing import ClassVar

from kvgate.chunk.foreign.base import ForeignKey
from kvgate.chunk.foreign.lmcache_mp import LMCacheMPParser
from tests.contracts.key_parser import KeyParserContract

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ONE, OTHER = "00ff" * 16, "0123456789abcdef" * 4


class TestLMCacheMPParser(KeyParserContract):
    name = "lmcache-mp"
    parser = LMCacheMPParser
    accepted: ClassVar = {
        f"{MODEL}@04010401@0@{ONE}": ForeignKey("lmcache-mp", MODEL, "04010401@0@", ONE),
        f"{MODEL}@04010401@0@{OTHER}": ForeignKey("lmcache-mp", MODEL, "04010401@0@", OTHER),
        f"{MODEL}@04010401@1f@{ONE}": ForeignKey("lmcache-mp", MODEL, "04010401@1f@", ONE),
        f"{MODEL}@04010401@0@{ONE}@tenant-7": ForeignKey("lmcache-mp", MODEL, "04010401@0@tenant-7", ONE),
        # a salt can be anything, the name of a dtype too
        f"m@10000800@0@{ONE[:16]}@bfloat16": ForeignKey("lmcache-mp", "m", "10000800@0@bfloat16", ONE[:16]),
        f"m@10000800@0@{ONE[:32]}": ForeignKey("lmcache-mp", "m", "10000800@0@", ONE[:32]),
    }
    runs: ClassVar = [(f"{MODEL}@04010401@0@{ONE}", f"{MODEL}@04010401@0@{OTHER}")]
    refused: ClassVar = [
        f"{MODEL}@4010401@0@{ONE}",  # always eight digits
        f"{MODEL}@04010401@00@{ONE}",
        f"{MODEL}@04010401@0@{ONE[1:]}",
        f"{MODEL}@04010401@0@{ONE.upper()}",
        f"{MODEL}@04010401@0@{ONE}@",
        f"{MODEL}@04010401@0@{ONE}@a/b",
        f"{MODEL}@04010401@0@{ONE}@{'s' * 129}",
        f"@04010401@0@{ONE}",
    ]
