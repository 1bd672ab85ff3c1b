//! Operators whose time follows from the shapes of their inputs, and whose outputs' shapes do, too. A graph of nothing else
//! takes as long for one row as for the next; one with a loop, or with a size among its values, as long as a request says.

/// Of ONNX, sorted.
const ONNX: [&str; 96] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "DynamicQuantizeLinear",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Round",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Of its domain for classical models, sorted.
const MACHINE_LEARNING: [&str; 13] = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "FeatureVectorizer",
    "Imputer",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

/// Is it one of them?
pub(super) fn is_steady(domain: &str, operator: &str) -> bool {
    match domain {
        "" => ONNX.binary_search(&operator).is_ok(),
        "ai.onnx.ml" => MACHINE_LEARNING.binary_search(&operator).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_loops_are_not_in_them() {
        assert!(ONNX.is_sorted() && MACHINE_LEARNING.is_sorted());
        let sized_by_values =
            ["If", "Loop", "Scan", "Range", "Tile", "Expand", "OneHot", "Resize", "NonZero", "Einsum"];
        assert!(sized_by_values.iter().all(|operator| !is_steady("", operator)));
        assert!(is_steady("", "MatMul") && !is_steady("com.microsoft", "MatMul"));
        assert!(is_steady("ai.onnx.ml", "Scaler") && !is_steady("", "Scaler"));
    }
}
