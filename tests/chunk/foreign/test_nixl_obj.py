from __future__ import annotations

from typing import ClassVar

from kvgate.chunk.foreign.base import UNKNOWN_MODEL, ForeignKey
from kvgate.chunk.foreign.nixl_obj import NixlObjParser
from tests.contracts.key_parser import KeyParserContract

MODEL = "meta-llama_Llama-3.1-8B"


class TestNixlObjParser(KeyParserContract):
    name = "nixl"
    parser = NixlObjParser
    accepted: ClassVar = {
        "0": ForeignKey("nixl", UNKNOWN_MODEL, "device id", "0"),
        str(2**64 - 1): ForeignKey("nixl", UNKNOWN_MODEL, "device id", str(2**64 - 1)),
        "obj_17_0af3": ForeignKey("nixl", UNKNOWN_MODEL, "slot", "obj_17_0af3"),
        f"{MODEL}_1_0_2f1c6a3b9d0e4f57_bfloat16": ForeignKey("nixl", MODEL, "1_0_bfloat16", "2f1c6a3b9d0e4f57"),
        f"{MODEL}_1_0_-3_bfloat16": ForeignKey("nixl", MODEL, "1_0_bfloat16", "-3"),
        f"{MODEL}_1_0_3_fp8_e5m2_user%257": ForeignKey("nixl", MODEL, "1_0_fp8_e5m2_user%257", "3"),
    }
    runs: ClassVar = [
        ("0", str(2**64 - 1)),
        (f"{MODEL}_1_0_2f1c6a3b9d0e4f57_bfloat16", f"{MODEL}_1_0_-3_bfloat16"),
    ]
    refused: ClassVar = [
        "01",
        "-1",
        "\u0661",
        str(2**64),
        "obj_17",
        "obj_17_0af3.bin",
        f"{MODEL}_1_0_3",
        f"{MODEL}_1_0_3_bf16",
        f"meta-llama/{MODEL}_1_0_3_bfloat16",
        f"{MODEL}_1_0_3_bfloat16_extra",
    ]
