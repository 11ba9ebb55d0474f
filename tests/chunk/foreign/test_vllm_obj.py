from __future__ import annotations

from typing import ClassVar

from kvgate.chunk.foreign.base import ForeignKey
from kvgate.chunk.foreign.vllm_obj import VLLMObjParser
from tests.contracts.key_parser import KeyParserContract

MODEL = "meta-llama_Llama-3.1-8B"
ONE, OTHER = "abcde" + "0" * 59, "01234" + "f" * 59
BASE = f"{MODEL}_0123456789ab_r0"


def said(block_hash: str, series: str) -> ForeignKey:
    return ForeignKey("vllm", MODEL, series, block_hash)


class TestVLLMObjParser(KeyParserContract):
    name = "vllm"
    parser = VLLMObjParser
    accepted: ClassVar = {
        f"{BASE}/abc/de_g0/{ONE}.bin": said(ONE, "0123456789ab_r0_g0"),
        f"{BASE}/012/34_g0/{OTHER}.bin": said(OTHER, "0123456789ab_r0_g0"),
        f"{BASE}/012/34_g1/{OTHER}.bin": said(OTHER, "0123456789ab_r0_g1"),
        f"{BASE}/abc/de_g0/{ONE[:32]}.bin": said(ONE[:32], "0123456789ab_r0_g0"),
        f"cache/v1/{BASE}/abc/de_g0/{ONE}.bin": said(ONE, "cache/v1/0123456789ab_r0_g0"),
        f"cache//{BASE}/abc/de_g0/{ONE}.bin": said(ONE, "cache//0123456789ab_r0_g0"),
        f"/{BASE}/abc/de_g0/{ONE}.bin": said(ONE, "/0123456789ab_r0_g0"),
        f"{MODEL}_ffffffffffff_r12/abc/de_g0/{ONE}.bin": said(ONE, "ffffffffffff_r12_g0"),
    }
    runs: ClassVar = [(f"{BASE}/abc/de_g0/{ONE}.bin", f"{BASE}/012/34_g0/{OTHER}.bin")]
    refused: ClassVar = [
        f"{BASE}/abc/de_g0/{OTHER}.bin",  # the folders begin the hash
        f"{BASE}/abc/de_g0/{ONE}",
        f"{BASE}/abc/de_g0/{ONE[:40]}.bin",
        f"{BASE}/config.json",
        f"{MODEL}_0123456789AB_r0/abc/de_g0/{ONE}.bin",
        f"{MODEL}_r0/abc/de_g0/{ONE}.bin",
        f"_0123456789ab_r0/abc/de_g0/{ONE}.bin",
        "__nixl_probe__/connectivity_test",
    ]
