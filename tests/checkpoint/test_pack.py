"""Packs: files that every safetensors reader opens, read back bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalkit.checkpoint import bulk, pack
from modalkit.errors import CheckpointCorruptError, CheckpointError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
    torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128,
]  # fmt: skip

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
SIZES |= {"U16": 2, "U32": 4, "U64": 8, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def write(path: Path, **leaves: object) -> list:
    return pack.write_pack(path, {name: bulk.pack_copy(name, v) for name, v in leaves.items()})


def parse_strictly(content: bytes) -> dict[str, bytes]:
    """Read a pack by the safetensors specification, and refuse what its reference reader does."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert content[8:9] == b"{"
    data = content[8 + length :]
    metadata = header.pop("__metadata__", {})
    assert all(type(k) is str and type(v) is str for k, v in metadata.items())
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == end, "no holes, no overlaps"
        assert stop - start == math.prod(entry["shape"]) * SIZES[entry["dtype"]]
        end = stop
    assert end == len(data), "the file ends with its last tensor"
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bytes: every bit pattern, NaNs and subnormals included."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    flat = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    return flat.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(bulk.view(tensor.contiguous()))


@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=6),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    seed=st.integers(0, 100),
)
def test_tensors_come_back_bit_for_bit(tmp_path_factory, dtypes, shape, seed):
    path = tmp_path_factory.mktemp("pack") / "p.safetensors"
    tensors = {f"t{i}": random_tensor(d, shape, seed + i) for i, d in enumerate(dtypes)}
    rows = write(path, **tensors)
    back = pack.read_pack(path, rows)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert raw(back[name]) == raw(tensor)
    contents = parse_strictly(path.read_bytes())
    assert all(contents[name] == raw(tensor) for name, tensor in tensors.items())


def test_arrays_and_bytes_come_back_as_what_they_were(tmp_path):
    array = np.arange(6, dtype=np.uint32).reshape(2, 3).T
    values = {"a": array, "b": b"\x00\xff", "scalar": np.array(0.5), "empty": b""}
    back = pack.read_pack(tmp_path / "p", write(tmp_path / "p", **values))
    assert np.array_equal(back["a"], array)
    assert back["a"].dtype == array.dtype
    assert (back["b"], back["empty"]) == (b"\x00\xff", b"")
    assert back["scalar"].shape == ()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12).reshape(3, 4).T,
        torch.arange(10)[::3],
        torch.zeros(1).expand(4),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.view_as_complex(torch.randn(3, 2)).conj(),
        torch.randn(3, requires_grad=True),
    ],
    ids=["transposed", "strided", "expanded", "channels-last", "conjugate", "with-grad"],
)
def test_what_a_tensor_shows_is_stored_however_it_lies_in_memory(tmp_path, tensor):
    back = pack.read_pack(tmp_path / "p", write(tmp_path / "p", t=tensor))["t"]
    assert torch.equal(back, tensor.detach())


def test_data_is_aligned_and_starts_on_a_page(tmp_path):
    values = {f"t{i}": torch.ones(i, dtype=torch.uint8) for i in range(5)}
    rows = write(tmp_path / "p", **values)
    assert [row.offset % pack.ALIGNMENT for row in rows] == [0] * 5
    assert rows[0].offset % pack.HEADER_ALIGNMENT == 0


def test_a_copy_is_not_reached_by_later_changes():
    tensor, array = torch.zeros(3), np.zeros(3)
    copies = [bulk.pack_copy("t", tensor), bulk.pack_copy("a", array)]
    tensor += 1
    array += 1
    assert [bytes(copy.data) for copy in copies] == [bytes(12), bytes(24)]


def test_the_reference_reader_agrees(tmp_path):
    reader = pytest.importorskip("safetensors.torch")
    tensors = {"w": torch.randn(3, 5), "b": torch.randn(5).bfloat16(), "i": torch.tensor(7)}
    write(tmp_path / "p", **tensors)
    loaded = reader.load_file(tmp_path / "p")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda: torch.zeros(3).to_sparse(), "sparse"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: np.array([object()]), "array of object"),
        (lambda: np.array(["a"]), "array of <U1"),
        (lambda: np.zeros(2, dtype=">f4"), "array of >f4"),
    ],
    ids=["sparse", "meta", "quantized", "objects", "text", "big-endian"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_has_no_plain_bytes_is_refused_by_name(value, says):
    value = value()
    with pytest.raises(CheckpointError, match=f"model.x: an? {says}"):
        bulk.pack_copy("model.x", value)


def test_a_pack_is_never_overwritten(tmp_path):
    write(tmp_path / "p", t=torch.zeros(1))
    with pytest.raises(FileExistsError):
        write(tmp_path / "p", t=torch.ones(1))


def test_every_changed_byte_of_the_data_is_noticed(tmp_path):
    rows = write(tmp_path / "p", a=torch.arange(20, dtype=torch.uint8), b=torch.randn(3))
    good = (tmp_path / "p").read_bytes()
    for row in rows:
        for position in range(row.offset, row.offset + row.length):
            changed = bytearray(good)
            changed[position] ^= 0x10
            (tmp_path / "p").write_bytes(changed)
            with pytest.raises(CheckpointCorruptError, match=f"{row.name}: its bytes"):
                pack.read_pack(tmp_path / "p", rows)


def test_a_short_or_missing_pack_is_noticed(tmp_path):
    rows = write(tmp_path / "p", a=torch.randn(30), b=torch.randn(3))
    good = (tmp_path / "p").read_bytes()
    for size in (0, 1, 4095, 4096, 4097, len(good) - 1):
        (tmp_path / "p").write_bytes(good[:size])
        with pytest.raises(CheckpointCorruptError, match="the pack ends before it"):
            pack.read_pack(tmp_path / "p", rows)
    (tmp_path / "p").unlink()
    with pytest.raises(CheckpointCorruptError, match="cannot be read"):
        pack.read_pack(tmp_path / "p", rows)
