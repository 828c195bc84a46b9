"""What a decoding process and its parent say to each other: JSON and raw bytes, both with their
length before them. No pickle: the child has read hostile files, and the parent believes it nothing.
"""

import json
import struct
from typing import BinaryIO

_LENGTHS = struct.Struct("<II")
MAX_JSON = 2**20


def write_message(stream: BinaryIO, values: dict, data: bytes = b"") -> None:
    text = json.dumps(values).encode()  # ASCII: file names that are not UTF-8 survive
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO, max_data: int = 2**32) -> tuple[dict, bytes] | None:
    """(values, data); None where the stream has ended.

    Raises:
        ValueError: longer than allowed, or no JSON object.
    """
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    text_length, data_length = _LENGTHS.unpack(head)
    if text_length > MAX_JSON or data_length > max_data:
        raise ValueError(f"a message of {text_length} + {data_length} bytes")
    text, data = stream.read(text_length), stream.read(data_length)
    if len(text) < text_length or len(data) < data_length:
        return None
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("a message that is no JSON object")
    return values, data
