"""KServe's CustomResourceDefinitions as schemas, and YAML as an API server reads it."""

import copy
import re

import jsonschema
import yaml

# A config is a service without a status: where its CRD is not there, the other's says what its spec may hold.
SAME_SPEC = {"LLMInferenceServiceConfig": "LLMInferenceService"}


class Strict(yaml.SafeLoader):
    """YAML as an API server reads it strictly: a key given twice is an error, and dates stay strings."""


def mapping(loader, node):
    loader.flatten_mapping(node)
    seen = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        seen.add(str(key.value))
    return loader.construct_mapping(node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
Strict.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node))

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
DNS = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": DNS, "maxLength": 253},
        "namespace": {"type": "string", "pattern": DNS, "maxLength": 63},
        "labels": STRINGS,
        "annotations": STRINGS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
    },
}


def strict(schema):
    """A structural schema as JSON Schema that refuses what the API server would prune."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    if "properties" in out:
        out["properties"] = {name: strict(each) for name, each in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = strict(out[key])
    # allOf, anyOf and oneOf of a structural schema only narrow values: they name no further fields.
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    fields = out.get("type") == "object" or "properties" in out
    if fields and "additionalProperties" not in out and not out.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    if out.pop("nullable", False):
        out = {"anyOf": [{"type": "null"}, out]}
    return out


def unique(validator, keys, items, schema):
    """x-kubernetes-list-map-keys: no two items with the same key."""
    fields = schema.get("items", {}).get("properties", {})
    seen = []
    for item in items if isinstance(items, list) else []:
        key = [item.get(each, fields.get(each, {}).get("default")) for each in keys] if isinstance(item, dict) else item
        if key in seen:
            yield jsonschema.ValidationError(f"two items with {', '.join(keys)} = {', '.join(map(str, key))}")
        seen.append(key)


FORMATS = jsonschema.FormatChecker(formats=())
for bits in (32, 64):
    FORMATS.checks(f"int{bits}")(lambda value, bound=2 ** (bits - 1): type(value) is not int or -bound <= value < bound)
# Draft 4 is what OpenAPI 3.0 extends: there exclusiveMinimum is true or false, too.
Validator = jsonschema.validators.extend(jsonschema.Draft4Validator, {"x-kubernetes-list-map-keys": unique})


class Crds:
    """The folder of CRDs; a file is read when a kind of it is asked for."""

    def __init__(self, folder):
        self.files = {}
        for path in sorted(folder.glob("*.yaml")):
            text = path.read_text()
            group = re.search(r"^  group: (\S+)$", text, re.M)
            kind = re.search(r"^    kind: (\S+)$", text, re.M)
            if group and kind:
                self.files[group[1], kind[1]] = text
        self.validators = {}

    def validator(self, group, version, kind):
        """The validator, None if the folder has no such kind, a string if not in this version."""
        if (group, kind) not in self.files:
            kind = SAME_SPEC.get(kind, kind)
        if (group, kind) not in self.files:
            return None
        if (group, kind) not in self.validators:
            crd = yaml.load(self.files[group, kind], getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            self.validators[group, kind] = {
                each["name"]: self.build(each["schema"]["openAPIV3Schema"])
                for each in crd["spec"]["versions"]
                if each.get("served", True)
            }
        versions = self.validators[group, kind]
        return versions.get(version) or f"apiVersion: {kind} has {', '.join(versions)}, not {version}"

    @staticmethod
    def build(schema):
        schema = strict(schema)
        schema["properties"] = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            **schema["properties"],
            "metadata": METADATA,
        }
        schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata", "spec"})
        return Validator(schema, format_checker=FORMATS)


def where(error):
    path = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in error.absolute_path)
    return path.lstrip(".") or "(top)"
