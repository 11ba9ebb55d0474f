"""The names of a vLLM engine's KV, from vLLM's own objects: whatever changes KV changes a name, or is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_adapters.vllm.engine import (
    ENVIRONMENT,
    HERE,
    LLAMA,
    LORA_ONE,
    LORA_TWO,
    engine_arguments,
    process_environment,
    why_unavailable,
)
from tests.engine_adapters.vllm.prompts import prompt

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(why_unavailable() is not None, reason=why_unavailable() or ""),
]


def case(model: Path = LLAMA, **parts: Any) -> dict[str, Any]:
    """A case for naming.py; `arguments` are added to the usual ones."""
    arguments = engine_arguments(model, **parts.pop("arguments", {}))
    return {"arguments": arguments} | parts


Name = Callable[[list[dict[str, Any]]], list[Any]]


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Name]:
    """Gives the answers to cases."""
    folder = tmp_path_factory.mktemp("naming")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(ENVIRONMENT / "bin" / "python"), str(HERE / "naming.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={"VLLM_CACHE_ROOT": str(Path.home() / ".cache" / "vllm")}  # of what it found out about model classes
            | os.environ
            | process_environment()
            | {"XDG_CACHE_HOME": str(folder)},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, told = process.stdin, process.stdout

    def answers(cases: list[dict[str, Any]]) -> list[Any]:
        found = []
        for each in cases:
            asked.write(json.dumps(each).encode() + b"\n")
            asked.flush()
            line = told.readline()
            assert line, (folder / "log").read_text()[-4000:]
            found.append(json.loads(line))
        return found

    yield answers
    process.kill()
    process.communicate()


def copy_of(model: Path, folder: Path, **config: Any) -> Path:
    """The same files under another path, with other values in config.json."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    if config:
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def test_whatever_changes_kv_changes_the_space(name: Name, tmp_path: Path) -> None:
    rope = json.loads((LLAMA / "config.json").read_text())["rope_parameters"]
    weights = copy_of(LLAMA, tmp_path / "weights" / "tiny-llama")
    append(next(weights.glob("*.safetensors")), b"\0")
    tokenizer = copy_of(LLAMA, tmp_path / "tokenizer" / "tiny-llama")
    append(tokenizer / "tokenizer.json", b"\n")
    theta = copy_of(LLAMA, tmp_path / "theta" / "tiny-llama", rope_parameters=rope | {"rope_theta": 20_000.0})
    linear = copy_of(
        LLAMA, tmp_path / "linear" / "tiny-llama", rope_parameters=rope | {"rope_type": "linear", "factor": 2.0}
    )
    dynamic = copy_of(
        LLAMA, tmp_path / "dynamic" / "tiny-llama", rope_parameters=rope | {"rope_type": "dynamic", "factor": 2.0}
    )
    cases = {
        "as it is": case(),
        "weights": case(weights),
        "tokenizer": case(tokenizer),
        "rope theta": case(theta),
        "rope type": case(linear),
        "rope that depends on the length": case(dynamic),
        "and another length": case(dynamic, arguments={"max_model_len": 2048}),
        "dtype": case(arguments={"dtype": "float32"}),
        "LoRA": case(lora=str(LORA_ONE)),
        "LoRA of the same name": case(lora=str(LORA_TWO)),
        "chunk size": case(extra={"chunk_tokens": 128}),
        "block size, which packs otherwise": case(arguments={"block_size": 64}),
        "some layers": case(layers=[0, 1, 3]),
        "other layers": case(layers=[0, 1, 2]),
        "model name": case(extra={"model_name": "another"}),
        "told weights": case(extra={"weights": "revision-1"}),
        "told weights of another revision": case(extra={"weights": "revision-2"}),
    }
    answers = dict(zip(cases, name(list(cases.values())), strict=True))
    refused = {what: answer for what, answer in answers.items() if not isinstance(answer, list)}
    assert not refused
    ids = {what: answer[0]["id"] for what, answer in answers.items()}
    assert len(set(ids.values())) == len(ids), ids
    first = answers["as it is"][0]
    assert (first["model"], first["dtype"], first["layers"], first["kv_heads"]) == ("tiny-llama", "BF16", 4, 4)
    assert first["packing"].startswith("vllm-cpu-")
    assert (answers["some layers"][0]["layers"], answers["as it is"][0]["layer_set"]) == (3, "all")


def test_what_changes_no_kv_changes_no_space(name: Name, tmp_path: Path) -> None:
    elsewhere = copy_of(LLAMA, tmp_path / "elsewhere" / "tiny-llama")
    cases = [
        case(),
        case(elsewhere),
        case(arguments={"max_model_len": 2048, "max_num_seqs": 3, "max_num_batched_tokens": 512}),
        case(arguments={"tensor_parallel_size": 2}),
        case(arguments={"pipeline_parallel_size": 2}, layers=[0, 1]),
        case(arguments={"pipeline_parallel_size": 2}, layers=[2, 3]),
        case(arguments={"prefix_caching_hash_algo": "sha256"}),
        case(arguments={"enable_lora": True, "max_lora_rank": 8}),
        case(arguments={"seed": 7}),
    ]
    answers = name(cases)
    assert [len(answer) for answer in answers] == [1] * len(cases)
    for each, answer in zip(cases, answers, strict=True):
        assert answer == answers[0], each


def test_a_changed_weight_file_is_read_again(name: Name, tmp_path: Path) -> None:
    model = copy_of(LLAMA, tmp_path / "tiny-llama")
    file = next(model.glob("*.safetensors"))
    (before,) = name([case(model)])
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync and tar do; only the ctime tells
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    (after,) = name([case(model)])
    assert before[0]["id"] != after[0]["id"]
    assert before[0] | {"id": "", "weights": ""} == after[0] | {"id": "", "weights": ""}


def test_what_has_no_name_is_refused_with_what_to_do(name: Name, tmp_path: Path) -> None:
    empty = copy_of(LLAMA, tmp_path / "empty" / "tiny-llama")
    for file in empty.glob("*.safetensors"):
        file.unlink()
    bare = tmp_path / "adapter"
    bare.mkdir()
    (bare / "adapter_config.json").write_text("{}")
    cases = {
        "set it to sha256_cbor": case(set={"cache_config.prefix_caching_hash_algo": "xxhash"}),
        "set weights in kv_connector_extra_config": case(empty),
        "takes the scales of fp8 KV from the first prompt": case(set={"cache_config.calculate_kv_scales": True}),
        "context parallelism": case(set={"parallel_config.decode_context_parallel_size": 2}),
        "no files here that could be hashed": case(lora=str(bare)),
        "several groups of layers with pipeline parallelism": case(arguments={"pipeline_parallel_size": 2}, window=64),
        "layers without KV of their own": case(arguments={"pipeline_parallel_size": 2}, layers=[0, 2]),
        "layers of a draft model": case(layers=[0, 1, 2, 3, 4]),
        "did you mean": case(extra={"chunk_token": 64}),
        "leave it out, or run one rank": case(arguments={"tensor_parallel_size": 2}, extra={"lossless": "zstd-split"}),
        "known: none, lz4": case(extra={"lossless": "zst"}),
        "no tokenizer in": case(set={"model_config.tokenizer": str(bare)}),
    }
    answers = dict(zip(cases, name(list(cases.values())), strict=True))
    for what, answer in answers.items():
        assert isinstance(answer, dict), (what, answer)
        assert what in answer["refused"], answer


def test_kv_in_fp8_has_a_space_of_its_own_or_the_cpu_cannot_have_it(name: Name) -> None:
    dtypes = {"auto": "BF16", "fp8": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}
    answers = name([case(arguments={"kv_cache_dtype": dtype}) for dtype in dtypes])
    if "avx512f" in Path("/proc/cpuinfo").read_text():
        assert [answer[0]["dtype"] for answer in answers] == list(dtypes.values())
        assert len({answer[0]["id"] for answer in answers}) == 3
    else:
        assert all("AVX-512" in answer["refused"] for answer in answers[1:])


def test_two_groups_are_two_spaces(name: Name, tmp_path: Path) -> None:
    (answer,) = name([case(window=64)])
    assert [each["layers"] for each in answer] == [2, 2]
    assert len({each["id"] for each in answer}) == len({each["layer_set"] for each in answer}) == 2


def test_images_and_salts_are_in_the_hashes_and_adapters_are_not(name: Name, tmp_path: Path) -> None:
    tokens = prompt("names", 4 * 64)

    def request(**parts: Any) -> dict[str, Any]:
        return case(request={"tokens": tokens} | parts)

    images = [["sha-of-one", 70, 40], ["sha-of-two", 200, 10]]
    plain, again, pieces, salted, first, second, moved, adapter = (
        answer[0]
        for answer in name(
            [
                request(),
                request(stops=[4]),
                request(stops=[1, 2, 2, 4]),
                request(salt="mine"),
                request(images=images),
                request(images=[images[0], ["sha-of-another", 200, 10]], stops=[1, 3, 4]),
                request(images=[["sha-of-one", 71, 40], images[1]]),
                request(lora=str(LORA_ONE)),
            ]
        )
    )
    assert plain == again == pieces == adapter
    assert (
        len({chunk for chain in (plain, salted) for chunk in chain}) == 8
    )  # a salt changes all from the first chunk on
    assert first[0] == plain[0]  # no image is in it
    assert first[1] != plain[1]
    assert first[:3] == second[:3]
    assert first[3] != second[3]
    assert moved[1] != first[1]  # the same image at another place


def test_events_tell_of_a_chunk_only_after_the_one_before_it(name: Name) -> None:
    request = {"tokens": prompt("events", 5 * 64)}
    backwards, mixed, in_order = name(
        [case(request=request, stored=order) for order in ([4, 3, 2, 1, 0], [1, 3, 0, 4, 2], [0, 1, 2, 3, 4])]
    )
    assert backwards == [[], [], [], [], [0, 1, 2, 3, 4]]
    assert mixed == [[], [], [0, 1], [], [2, 3, 4]]
    assert in_order == [[0], [1], [2], [3], [4]]
