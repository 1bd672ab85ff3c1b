//! `tensorgate manifests servingruntime`: the manifests of `deploy/runtimes`, with an image of the caller's.

use crate::args::ModelFormat;

/// The manifests as they lie in the repository: there is no second copy to fall behind.
const RUNTIMES: [(ModelFormat, &str); 6] = [
    (ModelFormat::Xgboost, include_str!("../../../deploy/runtimes/tensorgate-xgboost.yaml")),
    (ModelFormat::Lightgbm, include_str!("../../../deploy/runtimes/tensorgate-lightgbm.yaml")),
    (ModelFormat::Onnx, include_str!("../../../deploy/runtimes/tensorgate-onnx.yaml")),
    (ModelFormat::Triton, include_str!("../../../deploy/runtimes/tensorgate-triton.yaml")),
    (ModelFormat::Huggingface, include_str!("../../../deploy/runtimes/tensorgate-huggingface.yaml")),
    (ModelFormat::Vllm, include_str!("../../../deploy/runtimes/tensorgate-vllm.yaml")),
];

/// `ClusterServingRuntime` manifests: of one format or of all, with `image` in place of the released one.
pub fn serving_runtime(format: Option<ModelFormat>, image: Option<&str>) -> String {
    let wanted = RUNTIMES.iter().filter(|(each, _)| format.is_none_or(|format| format == *each));
    let texts: Vec<String> = wanted.map(|(_, text)| with_image(text.trim_end(), image)).collect();
    texts.join("\n---\n") + "\n"
}

fn with_image(text: &str, image: Option<&str>) -> String {
    let Some(image) = image else { return text.to_owned() };
    let line = |line: &str| match line.split_once("image: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}image: {}", quote(image)),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A YAML string in single quotes, in which only the quote itself is special.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_formats_and_one() {
        assert_eq!(serving_runtime(None, None).matches("kind: ClusterServingRuntime").count(), 6);
        let one = serving_runtime(Some(ModelFormat::Lightgbm), None);
        assert_eq!(one.matches("kind: ClusterServingRuntime").count(), 1);
        assert!(one.contains("name: lightgbm"));
    }

    #[test]
    fn the_image_is_the_callers() {
        let text = serving_runtime(Some(ModelFormat::Xgboost), Some("example/it's:1"));
        assert!(text.contains("      image: 'example/it''s:1'\n"), "{text}");
        assert_eq!(text.matches("image: ").count(), 1);
    }

    #[test]
    fn their_command_lines_are_understood() {
        for (format, _) in RUNTIMES {
            let text = serving_runtime(Some(format), None);
            let (_, args) = text.split_once("      args:\n").unwrap();
            let args = args.lines().map_while(|line| line.trim().strip_prefix("- ")).map(str::to_owned);
            let argv: Vec<String> = std::iter::once("tensorgate".to_owned()).chain(args).collect();
            assert!(argv.len() > 4, "{argv:?}");
            let invocation = crate::args::parse(&argv, &crate::args::Environment::default()).unwrap();
            assert!(invocation.warnings.is_empty(), "{:?}", invocation.warnings);
        }
    }
}
