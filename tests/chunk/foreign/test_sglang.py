from __future__ import annotations

from typing import ClassVar

from kvgate.chunk.foreign.base import UNKNOWN_MODEL, ForeignKey
from kvgate.chunk.foreign.sglang import SGLangParser
from tests.contracts.key_parser import KeyParserContract

MODEL = "Qwen-Qwen3_Next-8B"
ONE, OTHER = "a0" * 32, "b1" * 32


def said(rest: str, page_hash: str = ONE, model: str = MODEL) -> ForeignKey:
    return ForeignKey("sglang", model, rest, page_hash)


class TestSGLangParser(KeyParserContract):
    name = "sglang"
    parser = SGLangParser
    accepted: ClassVar = {
        f"{ONE}_{MODEL}_0_1": said("_0_1"),
        f"{OTHER}_{MODEL}_0_1": said("_0_1", OTHER),
        f"{ONE}_{MODEL}_3_8_k": said("_3_8_k"),
        f"{ONE}_{MODEL}_3_8_v": said("_3_8_v"),
        f"{ONE}_{MODEL}": said(""),
        f"{ONE}_{MODEL}_k": said("_k"),
        f"{ONE}_{MODEL}_0_1_mamba_temporal": said("_0_1_mamba_temporal"),
        f"{ONE}_{MODEL}_0_1_mamba_conv_2": said("_0_1_mamba_conv_2"),
        f"{ONE}_{MODEL}_indexer": said("_indexer"),
        f"{ONE}_{MODEL}_deepseek_v4_c4_indexer_scale_0": said("_deepseek_v4_c4_indexer_scale_0"),
        f"{ONE}__0_1": said("_0_1", model=UNKNOWN_MODEL),
    }
    runs: ClassVar = [(f"{ONE}_{MODEL}_0_1", f"{OTHER}_{MODEL}_0_1")]
    refused: ClassVar = [
        ONE,
        f"{ONE}{MODEL}_0_1",
        f"{ONE[:-1]}_{MODEL}_0_1",
        f"{ONE.upper()}_{MODEL}_0_1",
        f"{ONE}_Qwen/Qwen3_0_1",  # it flattens slashes
        f"{ONE}_ukv1-0123456789abcdef_L0-32_H0",
        f"{ONE}_{'m' * 256}",
        f"pages/{ONE}_{MODEL}_0_1",
    ]
