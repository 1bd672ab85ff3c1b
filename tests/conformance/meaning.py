"""What an answer means, and where two answers differ in it.

An answer is flattened to fields: `status`, `error`, `header.NAME`, `body.a.b.0`. Left out is what carries no meaning:
null members, generated ids and times, how a number is written, JSON or text errors, the order of listings.
"""

import json
import uuid
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from google.protobuf import json_format
from wire import LENGTH, NUMPY

ABSENT = "absent"
HEADERS = ("content-type", "content-encoding", "ce-specversion", "ce-source", "ce-type")
VARYING = {"ns", "last_inference", "time"}
GENERATED = "generated"
TYPED = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT64": "int64_contents",
    "INT32": "int_contents",
    "BYTES": "bytes_contents",
}


@dataclass
class Meaning:
    fields: dict
    text: str  # of the error, for what it must name


@dataclass
class Difference:
    field: str
    theirs: object
    ours: object


def is_error(status):
    return status != "OK" and not (isinstance(status, int) and status < 400)


def meaning(answer):
    if isinstance(answer.status, str):
        return grpc_meaning(answer)
    return rest_meaning(answer)


def rest_meaning(answer):
    document, outputs = parse(answer)
    fields = {"status": answer.status}
    if is_error(answer.status):
        text = error_text(document)
        fields["error"] = bool(text)
        return Meaning(fields, text)
    for name in HEADERS:
        if name in answer.headers:
            fields[f"header.{name}"] = answer.headers[name].split(";")[0]
    if outputs is not None:
        document["outputs"] = outputs
    flatten("body", document, fields)
    return Meaning(fields, "")


def error_text(document):
    """KServe's `error`, FastAPI's `detail`, or nothing."""
    if not isinstance(document, dict):
        return ""
    found = document.get("error") or document.get("detail") or ""
    return found if isinstance(found, str) else json.dumps(found)


def parse(answer):
    """The JSON document of a body, and its output tensors when it has any."""
    head, tail = answer.body, b""
    if LENGTH.lower() in answer.headers:
        length = int(answer.headers[LENGTH.lower()])
        head, tail = answer.body[:length], answer.body[length:]
    if not head:
        return {}, None
    try:
        document = json.loads(head)
    except ValueError:
        return {"text": head.decode(errors="replace")[:80]}, None
    if not isinstance(document, dict) or "outputs" not in document or "model_name" not in document:
        return document, None
    outputs, at = [], 0
    for output in document["outputs"]:
        size = (output.get("parameters") or {}).pop("binary_data_size", None)
        values = tensor_values(output["datatype"], output.get("data"), tail[at : at + (size or 0)])
        at += size or 0
        outputs.append({**output, "data": values, "form": "json" if size is None else "binary"})
    return document, outputs


def tensor_values(datatype, data, raw):
    """Flat values in the datatype itself, so that 0.1 and 0.10000000149011612 are one FP32."""
    if datatype == "BYTES":
        return [str(each) for each in data] if data is not None else strings(raw)
    kind = NUMPY[datatype]
    array = np.frombuffer(raw, dtype=kind) if data is None else np.array(data, dtype=kind).ravel()
    return ["NaN" if value != value else value for value in array.tolist()]


def strings(raw):
    found, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def grpc_meaning(answer):
    fields = {"status": answer.status}
    if is_error(answer.status):
        fields["error"] = bool(answer.error)
        return Meaning(fields, answer.error)
    messages = [message_fields(message) for message in answer.body]
    text = " ".join(getattr(message, "error_message", "") for message in answer.body)
    flatten("body", messages[0] if len(messages) == 1 else messages, fields)
    return Meaning(fields, text)


def message_fields(message):
    if isinstance(message, bytes):
        return {"bytes": message.hex()}
    document = json_format.MessageToDict(message, preserving_proto_field_name=True)
    name = message.DESCRIPTOR.name
    if name == "ModelInferResponse":
        add_outputs(document, message)
    if name == "ModelStreamInferResponse":
        if message.error_message:
            document["error_message"] = GENERATED
        if message.infer_response.outputs:
            add_outputs(document["infer_response"], message.infer_response)
    return document


def add_outputs(document, message):
    document.pop("raw_output_contents", None)
    raw = list(message.raw_output_contents)
    for index, output in enumerate(message.outputs):
        described = document["outputs"][index]
        described.pop("contents", None)
        described["form"] = "raw" if index < len(raw) else "typed"
        if index < len(raw):
            described["data"] = tensor_values(output.datatype, None, raw[index])
        else:
            typed = getattr(output.contents, TYPED[output.datatype])
            described["data"] = tensor_values(output.datatype, list(typed), b"")


def flatten(path, value, fields):
    """Objects and lists of objects become fields; a list of plain values is one field."""
    if value is None or value == {}:
        return
    if isinstance(value, dict):
        for key, member in value.items():
            flatten(f"{path}.{key}", GENERATED if key in VARYING else member, fields)
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        named = sorted(value, key=lambda each: str(each.get("name", "")))
        for index, member in enumerate(named):
            flatten(f"{path}.{index}", member, fields)
    elif path.endswith(".models"):
        fields[path] = sorted(value)
    else:
        fields[path] = GENERATED if is_uuid(value) else value


def is_uuid(value):
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


def differences(row, theirs, ours):
    """Every field of either that the other lacks or has with another value; `only` narrows what is looked at."""
    names = sorted(set(theirs.fields) | set(ours.fields))
    if is_error(theirs.fields["status"]) != is_error(ours.fields["status"]):
        names = ["status"]
    found = []
    for name in names:
        if row.only and not any(fnmatchcase(name, pattern) for pattern in row.only):
            continue
        left, right = theirs.fields.get(name, ABSENT), ours.fields.get(name, ABSENT)
        if left != right:
            found.append(Difference(name, left, right))
    return found
