"""`vectors.json`: bytes and what they mean, for whoever writes a client in another language. Both directions."""

import json
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from onecopy.protocol.arrays import take_apart
from onecopy.protocol.frames import StreamDecoder, pack_header, stream_parts, unpack_header
from onecopy.protocol.limits import WIRE_VERSION
from onecopy.protocol.messages import NUMBERS
from onecopy.protocol.tensors import ITEMSIZE_BYTES, NUMPY_NAMES, TORCH_NAMES
from onecopy.protocol.values import decode, encode

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
KINDS = {kind.__name__: kind for kind in NUMBERS}


def named(section):
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector["name"])


def data_of(text):
    """Bytes as the vectors write them: hex, or ``hex * times``."""
    digits, _, times = text.partition(" * ")
    return bytes.fromhex(digits) * int(times or 1)


def built(meaning):
    """The Python value that a vector's notation stands for."""
    if isinstance(meaning, list):
        return [built(item) for item in meaning]
    if not isinstance(meaning, dict):
        return meaning
    [(kind, of)] = meaning.items()
    match kind:
        case "tuple":
            return tuple(built(item) for item in of)
        case "map":
            return {built(key): built(value) for key, value in of}
        case "bytes":
            return data_of(of)
        case "integer":
            return int(of)
        case "float":
            return float(of)
        case "complex":
            return complex(of)
    family, dtype, shape, data = of
    flat = np.frombuffer(bytearray(data_of(data)), dtype=np.uint8)
    if family == "t":
        return torch.from_numpy(flat).view(getattr(torch, TORCH_NAMES[dtype])).reshape(shape)
    array = flat.view(NUMPY_NAMES[dtype])
    return array[0] if family == "s" else array.reshape(shape)


def meaning_of(value):
    """The notation for what was decoded; the inverse of `built`, but for how bytes are written."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else {"integer": str(value)}
    if kind is list:
        return [meaning_of(item) for item in value]
    if kind is tuple:
        return {"tuple": [meaning_of(item) for item in value]}
    if kind is dict:
        return {"map": [[meaning_of(key), meaning_of(one)] for key, one in value.items()]}
    if kind in (float, complex):
        return {kind.__name__: repr(value)}
    if kind is bytes:
        return {"bytes": value.hex()}
    family, dtype, shape, data = take_apart(value)
    return {"array": [family, dtype, list(shape), bytes(data).hex()]}


def normal(meaning):
    """The notation with every byte string written out."""
    return meaning_of(built(meaning))


def message_of(vector):
    return KINDS[vector["message"]](*(built(field) for field in vector["fields"]))


def test_the_vectors_are_of_this_version_of_the_wire():
    assert VECTORS["wire_version"] == WIRE_VERSION


def test_there_is_a_vector_for_every_message_that_a_client_meets():
    met = {kind.__name__ for kind, number in NUMBERS.items() if number < 40 or 50 <= number < 60}
    assert {vector["message"] for vector in VECTORS["headers"]} == met


def test_there_is_a_vector_for_every_dtype():
    text = json.dumps(VECTORS["values"])
    assert [dtype for dtype in ITEMSIZE_BYTES if f'"{dtype}"' not in text] == []


@named("headers")
def test_headers_are_packed_and_understood_as_the_vectors_say(vector):
    message = message_of(vector)
    assert pack_header(message).hex() == vector["hex"]
    assert unpack_header(bytes.fromhex(vector["hex"])) == message
    assert message._fields == typing.cast("type", KINDS[vector["message"]])._fields


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@named("values")
def test_values_are_encoded_and_decoded_as_the_vectors_say(vector):
    body, buffers = encode(built(vector["value"]))
    assert body.hex() == vector["hex"]
    assert [bytes(buffer) for buffer in buffers] == [data_of(text) for text in vector["buffers"]]
    decoded = decode(bytes.fromhex(vector["hex"]), [data_of(text) for text in vector["buffers"]])
    assert meaning_of(decoded) == normal(vector["value"])


@named("streams")
def test_streams_are_packed_and_understood_as_the_vectors_say(vector):
    sent = [
        (message_of(one), [data_of(text) for text in one["buffers"]], one["fds"]) for one in vector["messages"]
    ]
    stream = b"".join(bytes(part) for one in sent for part in stream_parts(*one))
    assert stream.hex() == vector["hex"]
    decoder = StreamDecoder()
    decoder.space()[: len(stream)] = stream
    decoder.wrote(len(stream))
    decoder.decode()
    assert list(decoder.arrived) == sent
    assert decoder.is_between_messages
