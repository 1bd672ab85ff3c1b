//! `tensorgate manifests`: what KServe needs to know to deploy models on this server.

use crate::args::ModelFormat;

/// A format as `InferenceService`s name it, and the major versions of the library whose files we read.
struct Supported {
    format: ModelFormat,
    name: &'static str,
    versions: &'static [&'static str],
}

const SUPPORTED: &[Supported] = &[
    Supported { format: ModelFormat::Xgboost, name: "xgboost", versions: &["1", "2", "3"] },
    Supported { format: ModelFormat::Lightgbm, name: "lightgbm", versions: &["3", "4"] },
];

/// A `ClusterServingRuntime` for one format, or for all.
#[must_use]
pub fn serving_runtime(format: Option<ModelFormat>, image: Option<&str>) -> String {
    let chosen = SUPPORTED.iter().filter(|each| format.is_none_or(|format| format == each.format));
    let formats: String =
        chosen.flat_map(|each| each.versions.iter().map(|version| entry(each.name, version))).collect();
    let name = SUPPORTED.iter().find(|each| Some(each.format) == format);
    let name = name.map_or("tensorgate".to_owned(), |each| format!("tensorgate-{}", each.name));
    let image = image.map_or(concat!("tensorgate:", env!("CARGO_PKG_VERSION")).to_owned(), str::to_owned);
    TEMPLATE.replace("@NAME", &name).replace("@FORMATS", formats.trim_end()).replace("@IMAGE", &quote(&image))
}

fn entry(name: &str, version: &str) -> String {
    format!("    - name: {name}\n      version: \"{version}\"\n      autoSelect: true\n      priority: 1\n")
}

/// A YAML text, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The pod gets 30 s to end, which a runtime cannot change: the two drain times and what follows fit into that.
const TEMPLATE: &str = r#"apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata:
  name: @NAME
spec:
  annotations:
    prometheus.kserve.io/port: "8080"
    prometheus.kserve.io/path: /metrics
  supportedModelFormats:
@FORMATS
  protocolVersions:
    - v1
    - v2
    - grpc-v2
  containers:
    - name: kserve-container
      image: @IMAGE
      args:
        - --model_name={{.Name}}
        - --model_dir=/mnt/models
        - --http_port=8080
        - --grpc_port=8081
      env:
        # Pods get 30 s to end. New connections still arrive while the endpoints are being updated.
        - name: TENSORGATE_DRAIN_DELAY
          value: 5s
        - name: TENSORGATE_DRAIN_TIMEOUT
          value: 20s
      readinessProbe:
        httpGet:
          path: /v2/health/ready
          port: 8080
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 2
      livenessProbe:
        httpGet:
          path: /v2/health/live
          port: 8080
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      securityContext:
        allowPrivilegeEscalation: false
        privileged: false
        runAsNonRoot: true
        readOnlyRootFilesystem: true
        capabilities:
          drop:
            - ALL
        seccompProfile:
          type: RuntimeDefault
      resources:
        requests:
          cpu: "1"
          memory: 2Gi
        limits:
          cpu: "1"
          memory: 2Gi
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    struct Runtime {
        kind: String,
        metadata: BTreeMap<String, String>,
        spec: Spec,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        annotations: BTreeMap<String, String>,
        supported_model_formats: Vec<Format>,
        protocol_versions: Vec<String>,
        containers: Vec<Container>,
    }

    #[derive(Deserialize)]
    struct Format {
        name: String,
        version: String,
    }

    #[derive(Deserialize)]
    struct Container {
        name: String,
        image: String,
        args: Vec<String>,
        env: Vec<BTreeMap<String, String>>,
    }

    fn runtime(format: Option<ModelFormat>, image: Option<&str>) -> Runtime {
        serde_saphyr::from_str(&serving_runtime(format, image)).unwrap()
    }

    fn formats(runtime: &Runtime) -> Vec<String> {
        runtime.spec.supported_model_formats.iter().map(|each| format!("{} {}", each.name, each.version)).collect()
    }

    #[test]
    fn both_formats() {
        let runtime = runtime(None, None);
        assert_eq!(runtime.kind, "ClusterServingRuntime");
        assert_eq!(runtime.metadata["name"], "tensorgate");
        assert_eq!(formats(&runtime), ["xgboost 1", "xgboost 2", "xgboost 3", "lightgbm 3", "lightgbm 4"]);
        assert_eq!(runtime.spec.protocol_versions, ["v1", "v2", "grpc-v2"]);
        assert_eq!(runtime.spec.annotations["prometheus.kserve.io/port"], "8080");
        let [container] = &runtime.spec.containers[..] else { panic!("one container") };
        assert_eq!(container.name, "kserve-container");
        assert_eq!(container.image, concat!("tensorgate:", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn one_format_and_an_image() {
        let runtime = runtime(Some(ModelFormat::Lightgbm), Some("example/it's:1 # x"));
        assert_eq!(runtime.metadata["name"], "tensorgate-lightgbm");
        assert_eq!(formats(&runtime), ["lightgbm 3", "lightgbm 4"]);
        assert_eq!(runtime.spec.containers[0].image, "example/it's:1 # x");
    }

    /// The manifest starts the server with what the server itself understands.
    #[test]
    fn its_command_line_is_understood() {
        let runtime = runtime(None, None);
        let container = &runtime.spec.containers[0];
        let argv: Vec<_> = std::iter::once("tensorgate".to_owned()).chain(container.args.iter().cloned()).collect();
        let environment = container.env.iter().map(|each| (each["name"].clone(), each["value"].clone())).collect();
        let invocation = crate::args::parse(&argv, &environment).unwrap();
        assert_eq!(invocation.warnings, Vec::<String>::new());
        let crate::args::Command::Serve(args) = invocation.command else { panic!("not serve") };
        let machine = crate::config::Machine { cores: 1, memory: 2 << 30 };
        let config = crate::config::Config::resolve(&args, &machine).unwrap();
        assert_eq!(config.model_name.as_deref(), Some("{{.Name}}"));
        assert!(config.drain_total() <= std::time::Duration::from_secs(25));
    }
}
