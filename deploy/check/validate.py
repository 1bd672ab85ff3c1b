#!/usr/bin/env python3
"""Checks Kubernetes manifests against KServe's CustomResourceDefinitions, without a cluster.

    validate.py [--crds DIR] [PATH ...]     files and directories; by default deploy/, and this check itself
    tensorgate manifests servingruntime | validate.py -

What an API server checks is checked: types, required fields, enums, patterns, ranges, keys of lists that are maps. A
field that the schema does not name is an error, where an API server would drop it in silence. On top come the rules of
KServe's webhooks that a schema cannot say, and what must hold between a command line and the probes, ports, mounts and
times around it. Not evaluated: x-kubernetes-validations (CEL).

Documents of other groups are checked if their CRD lies in the same folder, and named as not checked if not. Without
arguments, the Dockerfiles are compared with what the build needs, too.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys

import yaml
from image_check import dockerfile_complaints
from layers import filled_in, laid_over
from schemas import Crds, Strict, where

HERE = pathlib.Path(__file__).resolve().parent
DEPLOY = HERE.parent
ROOT = DEPLOY.parent
CRDS = "../shared/crds"
GROUP = "serving.kserve.io"
KINDS = {"ServingRuntime", "ClusterServingRuntime", "InferenceService", "InferenceGraph", "ClusterStorageContainer",
         "LLMInferenceService", "LLMInferenceServiceConfig", "LocalModelCache", "TrainedModel"}  # fmt: skip
# What KServe sends requests of LLMInferenceServices to, and where its storage initializer puts a model.
LLM_PORT = 8000
MODEL_DIR = "/mnt/models"
# Of the server, where nothing is said: how long it takes connections after SIGTERM, how long requests may then take;
# the latter is shorter for a command line in KServe's spelling, or Triton's. And what it needs to leave.
DRAIN = {"TENSORGATE_DRAIN_DELAY": "5s", "TENSORGATE_DRAIN_TIMEOUT": "45s"}
KSERVE_DRAIN = {**DRAIN, "TENSORGATE_DRAIN_TIMEOUT": "20s"}
TRITON_DRAIN = {**DRAIN, "TENSORGATE_DRAIN_TIMEOUT": "30s"}
LEAVE_SECONDS = 5


# The rules that no schema says.


def runtime_rules(spec):
    containers = spec["containers"]
    if not any(each["name"] == "kserve-container" for each in containers):
        yield "spec.containers: none is named kserve-container"
    priorities = {}
    for each in spec.get("supportedModelFormats", ()):
        if each.get("autoSelect") and each.get("priority") != priorities.setdefault(each["name"], each.get("priority")):
            yield f"spec.supportedModelFormats: {each['name']} has two priorities"
    volumes = {each["name"] for each in spec.get("volumes", ())}
    for container in containers:
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"spec.containers.volumeMounts: there is no volume {mount['name']}"
        yield from probe_rules(container)
        yield from port_rules(container)


def port_rules(container):
    """Probes ask a port that the command line opens, where it says which."""
    said = flags(container)
    ports = {word for name in ("port", "http-port", "grpc-port") for word in said.get(name, ())}
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        for kind in ("httpGet", "tcpSocket", "grpc"):
            port = str(container.get(name, {}).get(kind, {}).get("port", ""))
            if ports and port and port not in ports:
                yield f"{name}: asks port {port}, and the command line opens {', '.join(sorted(ports))}"


def words(*sources):
    return [word for source in sources for key in ("command", "args") for word in source.get(key, ())]


def flags(*sources):
    """The words after each flag of all command lines together, dashes for underscores; the last of a kind counts."""
    said, name = {}, ""
    for word in words(*sources):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("_", "-")
            said[name] = [value] if equals else []
            name = "" if equals else name
        else:
            said.setdefault(name, []).append(word)
    return said


def probe_rules(container):
    for name in ("readinessProbe", "livenessProbe", "startupProbe"):
        how = {"httpGet", "tcpSocket", "grpc", "exec"} & set(container.get(name, ()))
        if name in container and len(how) != 1:
            yield f"{name}: has to have one of httpGet, tcpSocket, grpc, exec; has {', '.join(sorted(how)) or 'none'}"


def service_rules(document):
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"]):
        yield "metadata.name: a letter, then letters, digits and dashes"
    predictor = document["spec"]["predictor"]
    kinds = {"model", "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml",
             "lightgbm", "paddle"}  # fmt: skip
    how = sorted(kinds & set(predictor))
    if len(how) > 1 or not (how or predictor.get("containers")):
        yield f"spec.predictor: has to have one implementation, has {', '.join(how) or 'none'}"
    model = predictor.get("model", {})
    if "name" in model and model["name"]:
        yield "spec.predictor.model.name: KServe refuses it"
    if model.get("storageUri") and predictor.get("storageUris"):
        yield "spec.predictor: storageUri and storageUris exclude each other"
    if is_knative(document):
        if "terminationGracePeriodSeconds" in predictor:
            yield "spec.predictor.terminationGracePeriodSeconds: Knative sets it from timeout, and refuses the field"
        if len(model.get("ports", ())) > 1:
            yield "spec.predictor.model.ports: Knative takes one"


def together(documents):
    """Rules over everything in this run: (origin, message) each."""
    runtimes = {}
    for origin, each in documents:
        if is_runtime(each):
            runtimes.setdefault(each["metadata"]["name"], (origin, each["spec"]))
    names = sorted(runtimes)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            clash = claims(runtimes[one][1]) & claims(runtimes[other][1])
            for claim in sorted(clash):
                yield runtimes[other][0], f"{one} and {other} both have priority {claim[2]} for {claim[0]} {claim[1]}"
    for origin, each in documents:
        if each.get("kind") != "InferenceService" or not runtimes:
            continue
        model = each["spec"]["predictor"].get("model", {})
        name = model.get("runtime")
        if not name or not name.startswith("tensorgate"):
            continue
        if name not in runtimes:
            yield origin, f"spec.predictor.model.runtime: there is no {name} among {', '.join(names)}"
            continue
        spec, form = runtimes[name][1], model["modelFormat"]
        formats = [(has["name"], has.get("version")) for has in spec.get("supportedModelFormats", ())]
        if not any(form["name"] == has and form.get("version") in (None, version) for has, version in formats):
            yield origin, f"spec.predictor.model.modelFormat: {name} does not support {form}"
        if model.get("protocolVersion", "v1") not in spec.get("protocolVersions", ()):
            yield origin, f"spec.predictor.model.protocolVersion: {name} has {spec['protocolVersions']}"
        needed, given = drain_seconds(spec, model) + LEAVE_SECONDS, grace_seconds(each)
        if given < needed:
            yield origin, f"spec.predictor: the pod gets {given} s to end, and the server may take {needed:g} s"


def drain_seconds(runtime, model):
    """What the InferenceService says over what the runtime says."""
    return drain(next(each for each in runtime["containers"] if each["name"] == "kserve-container"), model)


def drain(*sources):
    """Seconds that the server may take to stop, by variables and command lines; the last that says something counts."""
    named = {each["name"]: each.get("value", "") for source in sources for each in source.get("env", ())}
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    said = flags(*sources)
    kserves = any(re.match("--(model_name|model_dir|http_port|grpc_port)", word) for word in words(*sources))
    tritons = "tritonserver" in words(*sources)
    times = {**(TRITON_DRAIN if tritons else KSERVE_DRAIN if kserves else DRAIN), **named}
    for flag in ("shutdown-timeout", "exit-timeout-secs"):
        if said.get(flag):
            times["TENSORGATE_DRAIN_TIMEOUT"] = said[flag][-1] + "s"
    return sum(
        float(number) * units[unit]
        for name in DRAIN
        for number, unit in re.findall(r"([\d.]+)(ms|s|m|h)", times[name])
    )


# LLMInferenceService: KServe lays the configs of baseRefs over each other and the service over all, then fills in the
# braces. The same is done here, once with TLS and once without.

SAMPLE = {"metadata": {"name": "sample", "namespace": "default"}, "spec": {"model": {"uri": "hf://a/b", "name": "a/b"}}}


def llm_rules(config, service):
    """What must hold for a pod that `config` makes of `service`, once with TLS and once without."""
    seen = set()
    for tls in (True, False):
        spec = filled_in(config, service, tls)
        for complaint in llm_pod_rules(spec, service, tls):
            if complaint not in seen:
                seen.add(complaint)
                yield complaint


def llm_pod_rules(spec, service, tls):
    scheme = "with TLS" if tls else "without TLS"
    if "{{" in json.dumps(spec):
        yield "spec: braces that this check cannot fill in"
    for field in ("worker", "prefill", "kvCacheOffloading"):
        if field in spec:
            yield f"spec.{field}: not served"
    if spec.get("model", {}).get("lora"):
        yield "spec.model.lora: not served"
    pod = spec.get("template", {})
    main = next((each for each in pod.get("containers", ()) if each["name"] == "main"), None)
    if main is None:
        yield "spec.template.containers: none is named main"
        return
    yield from probe_rules(main)
    yield from port_rules(main)
    for name, program in (("command", main.get("command")), ("preStop", hook_command(main))):
        if not program or program[0] != entrypoint():
            yield f"{name}: has to start {entrypoint()}, which is all that the image has; is {program and program[0]}"
    said = flags(main)
    if said.get("", ())[1:] != ["vllm", "serve", MODEL_DIR]:
        yield f"command: has to be vllm serve {MODEL_DIR}, is {' '.join(said.get('', ())[1:])}"
    model = service["spec"].get("model", {}).get("name", service["metadata"]["name"])
    names = [model, f"publishers/{service['metadata'].get('namespace', 'default')}/models/{model}"]
    if said.get("served-model-name") != names:
        yield f"--served-model-name: KServe routes by {' and '.join(names)}, here {said.get('served-model-name')}"
    ports = {str(each["containerPort"]) for each in main.get("ports", ())}
    if said.get("port") != [str(LLM_PORT)] or str(LLM_PORT) not in ports:
        yield f"--port, ports: KServe sends requests to {LLM_PORT}, here {said.get('port')} and {sorted(ports)}"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        how = main.get(name, {}).get("httpGet", {})
        asked = (how.get("scheme", "HTTP"), how.get("path"))
        if asked != ("HTTPS" if tls else "HTTP", "/health"):
            yield f"{name}: {scheme} it asks {asked[0]} {asked[1]}"
    mounts = {each["mountPath"]: each["name"] for each in main.get("volumeMounts", ())}
    volumes = {each["name"]: each for each in pod.get("volumes", ())}
    for name in ("ssl-certfile", "ssl-keyfile"):
        path = "".join(said.get(name, ()))
        if bool(path) != tls:
            yield f"--{name}: {scheme} it is {path or 'not there'}"
        elif path and "secret" not in volumes.get(mounts.get(str(pathlib.PurePosixPath(path).parent)), {}):
            yield f"--{name}: no secret is mounted at {path}"
    if any(each["name"] == "VLLM_ADDITIONAL_ARGS" for each in main.get("env", ())):
        yield "env.VLLM_ADDITIONAL_ARGS: no shell reads it; flags go into args"
    needed, given = drain(main) + LEAVE_SECONDS, pod.get("terminationGracePeriodSeconds", 30)
    if given < needed:
        yield f"spec.template: the pod gets {given} s to end, and the server may take {needed:g} s"


def hook_command(container):
    return container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")


def entrypoint():
    """The one program of the image."""
    return json.loads(re.search(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile.cpu").read_text(), re.M)[1])[0]


def llm_together(documents):
    """Rules over LLMInferenceServices and their bases in this run: (origin, message) each."""
    configs = {each["metadata"]["name"]: (origin, each["spec"]) for origin, each in documents
               if each["kind"] == "LLMInferenceServiceConfig"}  # fmt: skip
    for name, (origin, spec) in sorted(configs.items()):
        if name.startswith("tensorgate"):
            for message in llm_rules(spec, SAMPLE):
                yield origin, message
    for origin, each in documents:
        if each["kind"] != "LLMInferenceService" or not configs:
            continue
        bases = [base["name"] for base in each["spec"].get("baseRefs", ())]
        for missing in [base for base in bases if base.startswith("tensorgate") and base not in configs]:
            yield origin, f"spec.baseRefs: there is no {missing} among {', '.join(sorted(configs))}"
        if any(base.startswith("tensorgate") for base in bases) and all(base in configs for base in bases):
            spec = {}
            for layer in [*(configs[base][1] for base in bases), each["spec"]]:
                spec = laid_over(spec, layer)
            for message in llm_rules(spec, each):
                yield origin, message


def grace_seconds(service):
    """Kubernetes' default is 30; under Knative it is the predictor's timeout, by default 300."""
    predictor = service["spec"]["predictor"]
    if is_knative(service):
        return predictor.get("timeout", 300)
    return predictor.get("terminationGracePeriodSeconds", 30)


def is_knative(service):
    return service["metadata"].get("annotations", {}).get(f"{GROUP}/deploymentMode") in ("Knative", "Serverless")


def is_runtime(document):
    return document["kind"] in ("ServingRuntime", "ClusterServingRuntime")


def claims(spec):
    """What a webhook wants to be unique: format, version and priority of entries that are selected by themselves."""
    if spec.get("disabled"):
        return set()
    return {
        (each["name"], str(each.get("version")), each["priority"])
        for each in spec.get("supportedModelFormats", ())
        if each.get("autoSelect") and "priority" in each
    }


def check(document, crds):
    """The errors of one document, or None if it is none of ours to check."""
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        return ["no mapping with a kind"]
    kind, api = document["kind"], str(document.get("apiVersion"))
    group, _, version = api.rpartition("/")
    validator = crds.validator(group, version, kind)
    if validator is None:
        if group == GROUP or kind in KINDS:
            return [f"apiVersion: no schema of {kind} in {api}"]
        return None
    if isinstance(validator, str):
        return [validator]
    errors = sorted(validator.iter_errors(document), key=lambda each: list(map(str, each.absolute_path)))
    messages = [f"{where(each)}: {each.message}" for each in errors]
    if not messages and group == GROUP:
        if is_runtime(document):
            messages = list(runtime_rules(document["spec"]))
        elif kind == "InferenceService":
            messages = list(service_rules(document))
    return messages


def read(text):
    return [each for each in yaml.load_all(text, Strict) if each is not None]


def manifests(paths):
    """(name, text) of each file; the bad ones of the check itself are not among a directory's."""
    for path in paths:
        if path == "-":
            yield "(stdin)", sys.stdin.read()
            continue
        path = pathlib.Path(path)
        files = sorted(path.rglob("*.y*ml")) if path.is_dir() else [path]
        for each in files:
            if path.is_dir() and (HERE / "bad") in each.resolve().parents:
                continue
            shown = each.resolve()
            yield str(shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else each), each.read_text()


class Tally:
    def __init__(self):
        self.passed = self.failed = 0
        self.unchecked = {}

    def result(self, name, errors):
        if errors:
            self.failed += 1
            print(f"FAIL {name}")
            for each in errors:
                print(f"     {each}")
        else:
            self.passed += 1
            print(f"ok   {name}")

    def documents(self, origin, text, crds):
        """Checks a text; returns its documents that a schema covers."""
        try:
            documents = read(text)
        except yaml.YAMLError as error:
            self.result(origin, [str(error).replace("\n", " ")])
            return []
        if not documents:
            self.result(origin, ["no document"])
        good = []
        for each in documents:
            errors = check(each, crds)
            name = f"{origin} {each.get('kind')}/{each.get('metadata', {}).get('name')}" if isinstance(each, dict) else origin
            if errors is None:
                kind = f"{each['kind']} ({each.get('apiVersion')})"
                self.unchecked.setdefault(kind, set()).add(name.rsplit(" ", 1)[0])
                continue
            self.result(name, errors)
            if not errors:
                good.append((name, each))
        return good


def renderings(tally, crds):
    """Every kustomization of deploy/, rendered; where kubectl is not there, only its list of files."""
    kubectl = shutil.which("kubectl")
    good = []
    for path in sorted(DEPLOY.rglob("kustomization.yaml")):
        name = f"kustomize {path.parent.relative_to(ROOT)}"
        missing = [each for each in yaml.load(path.read_text(), Strict).get("resources", ())
                   if not (path.parent / each).exists()]  # fmt: skip
        if missing or not kubectl:
            tally.result(f"{name} (files only: kubectl is not there)" if not kubectl else name,
                         [f"resources: there is no {each}" for each in missing])  # fmt: skip
            continue
        run = subprocess.run([kubectl, "kustomize", path.parent], capture_output=True, text=True)
        if run.returncode:
            tally.result(name, [run.stderr.strip()])
        else:
            good += tally.documents(name, run.stdout, crds)
    return good


def self_test(tally, crds):
    """Each manifest of bad/ has to be refused, for the reason that its first line names."""
    bad = sorted((HERE / "bad").glob("*.yaml"))
    if not bad:
        tally.result("refuses deploy/check/bad", ["there is nothing to refuse"])
    for path in bad:
        text = path.read_text()
        expected = text.splitlines()[0].removeprefix("# refused: ")
        inner = Tally()
        found = []
        inner.result = lambda _, errors, found=found: found.extend(errors)
        good = inner.documents(path.name, text, crds)
        found += [message for _, message in [*together(good), *llm_together(good)]]
        named = any(expected in each for each in found)
        said = "; ".join(found) or "nothing"
        tally.result(f"refuses {path.relative_to(ROOT)}", [] if named else [f"expected {expected!r}, found: {said}"])


def build_files(tally):
    """The Dockerfiles have all that the build needs; and that the check can tell, a line left out shows."""
    for name in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (ROOT / name).read_text()
        tally.result(name, dockerfile_complaints(text))
        lines = r"^(?:COPY (?:deploy/runtimes|server|--from=nvcc) .*|ENV NVCC=.*|COPY \.ci/nvcc.txt .*)\n"
        for line in re.findall(lines, text, re.M):
            told = dockerfile_complaints(text.replace(line, ""))
            tally.result(f"refuses {name} without {line.strip()}", [] if told else ["nothing is missed"])
    with_toolkit = text.replace("COPY --from=build /image /", "COPY --from=build /image /\nCOPY --from=nvcc /cuda /cuda")
    told = dockerfile_complaints(with_toolkit)
    tally.result("refuses Dockerfile.cuda with the toolkit", [] if told else ["nothing is missed"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crds", help=f"folder of CRDs; by default {CRDS} beside the repository")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files, directories, or - for standard input")
    arguments = parser.parse_args()
    shown = arguments.crds or CRDS
    folder = pathlib.Path(arguments.crds) if arguments.crds else ROOT / CRDS
    tally, good = Tally(), []
    if not arguments.paths:
        build_files(tally)
    if not folder.is_dir():
        print(f"skipped: {shown} is not there (deploy/check/validate.py: manifests against KServe's schemas)")
        return 1 if tally.failed else 0
    crds = Crds(folder)
    for origin, text in manifests(arguments.paths or [str(DEPLOY)]):
        if not origin.endswith("kustomization.yaml"):
            good += tally.documents(origin, text, crds)
    if not arguments.paths:
        rendered = renderings(tally, crds)
        # For the runtimes that only an overlay makes, by another name.
        good += [(name, each) for name, each in rendered if is_runtime(each)]
        self_test(tally, crds)
    for origin, message in [*together(good), *llm_together(good)]:
        tally.result(origin, [message])
    for kind, names in sorted(tally.unchecked.items()):
        print(f"not checked: no schema of {kind} at hand: {', '.join(sorted(names))}")
    print(f"{tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
