"""An independent cdb, in as few lines as it takes: what the programs under test write must be these bytes."""

import struct


def hash(key):
    h = 5381
    for byte in key:
        h = ((h * 33) ^ byte) & 0xFFFFFFFF
    return h


def make(records):
    """The file for [(key, data)], in this order."""
    body, tables, at = b"", [[] for _ in range(256)], 2048
    for key, data in records:
        h = hash(key)
        tables[h % 256].append((h, at))
        record = struct.pack("<II", len(key), len(data)) + key + data
        body += record
        at += len(record)
    header, slots = b"", b""
    for table in tables:
        header += struct.pack("<II", at + len(slots), 2 * len(table))
        row = [(0, 0)] * (2 * len(table))
        for h, position in table:
            i = h // 256 % len(row)
            while row[i][1]:
                i = (i + 1) % len(row)
            row[i] = (h, position)
        slots += b"".join(struct.pack("<II", *slot) for slot in row)
    return header + body + slots


def records(file):
    """All (key, data) of a file, in order; checked to be found by their hash."""
    end = min(struct.unpack_from("<I", file, 8 * i)[0] for i in range(256))
    found, at = [], 2048
    while at < end:
        k, d = struct.unpack_from("<II", file, at)
        found.append((file[at + 8:at + 8 + k], file[at + 8 + k:at + 8 + k + d]))
        at += 8 + k + d
    assert at == end
    for key, _ in found:
        assert get(file, key) is not None
    return found


def get(file, key):
    """The data of the first record with this key, or None."""
    h = hash(key)
    table, length = struct.unpack_from("<II", file, h % 256 * 8)
    for probe in range(length):
        found, at = struct.unpack_from("<II", file, table + (h // 256 + probe) % length * 8)
        if not at:
            return None
        k, d = struct.unpack_from("<II", file, at)
        if found == h and file[at + 8:at + 8 + k] == key:
            return file[at + 8 + k:at + 8 + k + d]
    return None
