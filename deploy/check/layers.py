"""What KServe makes of LLMInferenceServiceConfigs and a service: one laid over the other, braces filled in."""

import copy
import re

MERGED_BY = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name",
             "volumeMounts": "mountPath", "ports": "containerPort"}  # fmt: skip


def laid_over(base, over, field=None):
    """A strategic merge of Kubernetes: maps become one, lists with a key too, all else is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{name: laid_over(base.get(name), each, name) for name, each in over.items()}}
    key = MERGED_BY.get(field)
    if key and isinstance(base, list) and isinstance(over, list):
        both = {each[key]: each for each in base}
        for each in over:
            both[each[key]] = laid_over(both.get(each[key]), each)
        return list(both.values())
    return copy.deepcopy(over)


def filled_in(value, service, tls):
    """What KServe makes of the braces in a config; of those that these manifests use."""
    if isinstance(value, dict):
        return {name: filled_in(each, service, tls) for name, each in value.items()}
    if isinstance(value, list):
        return [filled_in(each, service, tls) for each in value]
    if not isinstance(value, str):
        return value
    metadata = service["metadata"]
    model = service["spec"].get("model", {}).get("name", metadata["name"])
    text = re.sub(
        r"\{\{-? *if \.GlobalConfig\.EnableTLS *-?\}\}(.*?)(?:\{\{-? *else *-?\}\}(.*?))?\{\{-? *end *-?\}\}",
        lambda found: found[1] if tls else found[2] or "",
        value,
    )
    text = re.sub(r"\{\{ *ChildName \.ObjectMeta\.Name `([^`]*)` *\}\}", lambda found: metadata["name"] + found[1], text)
    known = {
        "ObjectMeta.Name": metadata["name"],
        "ObjectMeta.Namespace": metadata.get("namespace", "default"),
        "Spec.Model.Name": model,
    }
    return re.sub(r"\{\{ *\.([\w.]+) *\}\}", lambda found: known.get(found[1], found[0]), text)
