//! What is known of operators. Whether they take empty tensors was tried with ONNX Runtime 1.31, each in a process of its
//! own and with each dimension of each input empty: of what is not listed nothing is known.

/// Its time follows from the shapes of its inputs, and so do the shapes of its outputs. A graph of nothing else takes as long
/// for one row as for the next; one with a loop, or with a size among its values, as long as a request says.
pub(super) const STEADY: u8 = 1;
/// Tensors without elements are answered, or refused.
pub(super) const SAFE: u8 = 2;
/// If every input has an element, every output has.
pub(super) const KEEPS: u8 = 4;
/// [`SAFE`] where all inputs but the first are in the file. Otherwise a tensor without elements keeps it busy for good.
pub(super) const FIRST: u8 = 16;
/// Some tensor without elements ends the process.
pub(super) const DEADLY: u8 = 8;

/// Operators of a domain of which the same is known, sorted.
struct Row {
    domain: &'static str,
    traits: u8,
    operators: &'static str,
}

const ML: &str = "ai.onnx.ml";
const MICROSOFT: &str = "com.microsoft";

const ROWS: [Row; 14] = [
    Row {
        domain: "",
        traits: STEADY | SAFE | KEEPS,
        operators: "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization Cast CastLike Ceil \
                    Celu Clip Concat Constant ConvInteger ConvTranspose Cos Cosh DepthToSpace DequantizeLinear Div \
                    DynamicQuantizeLinear Elu Equal Erf Exp Flatten Floor Gather GatherElements Gelu Gemm \
                    GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity \
                    InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul \
                    MatMulInteger Max Mean Min Mul Neg Not Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear \
                    Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round Selu \
                    Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze Where",
    },
    Row { domain: "", traits: STEADY | FIRST | KEEPS, operators: "Conv" },
    Row { domain: "", traits: STEADY | SAFE, operators: "AveragePool MaxPool Shape Split" },
    Row {
        domain: "",
        traits: SAFE | KEEPS,
        operators: "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CumSum Dropout GatherND GlobalLpPool \
                    GridSample GroupNormalization Hardmax IsInf IsNaN LRN LpNormalization MeanVarianceNormalization \
                    Mish Mod RMSNormalization RNN RandomNormalLike RandomUniformLike ReduceLogSum ReduceLogSumExp \
                    ReduceProd ReduceSumSquare ReverseSequence RotaryEmbedding Scatter ScatterElements ScatterND \
                    Shrink SimplifiedLayerNormalization Sinh SpaceToDepth StringConcat Swish Tan ThresholdedRelu \
                    Trilu Xor",
    },
    Row {
        domain: "",
        traits: SAFE,
        operators: "AffineGrid Bernoulli BlackmanWindow CenterCropPad Col2Im Compress ConcatFromSequence \
                    ConstantOfShape DFT DeformConv Det Expand EyeLike HammingWindow HannWindow If Loop LpPool \
                    MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss NonMaxSuppression \
                    NonZero OneHot Pad Range RegexFullMatch Resize RoiAlign SequenceAt SequenceConstruct \
                    SequenceEmpty SequenceErase SequenceInsert SequenceLength Size Slice SoftmaxCrossEntropyLoss \
                    SplitToSequence StringNormalizer StringSplit TensorScatter TfIdfVectorizer Tile TopK Upsample",
    },
    Row { domain: "", traits: KEEPS | DEADLY, operators: "Attention Einsum GRU LSTM Scan Unique" },
    Row { domain: "", traits: FIRST, operators: "STFT" },
    Row {
        domain: ML,
        traits: STEADY | SAFE | KEEPS,
        operators: "ArrayFeatureExtractor Binarizer Imputer LinearClassifier LinearRegressor Normalizer \
                    SVMClassifier SVMRegressor Scaler TreeEnsembleClassifier TreeEnsembleRegressor ZipMap",
    },
    Row { domain: ML, traits: SAFE | KEEPS, operators: "CategoryMapper LabelEncoder OneHotEncoder TreeEnsemble" },
    Row { domain: ML, traits: STEADY | KEEPS | DEADLY, operators: "FeatureVectorizer" },
    Row {
        domain: MICROSOFT,
        traits: SAFE | KEEPS,
        operators: "Attention BiasGelu DequantizeLinear DynamicQuantizeMatMul EmbedLayerNormalization ExpandDims \
                    FastGelu FusedGemm FusedMatMul GatherND Gelu MatMulIntegerToFloat MatMulNBits MurmurHash3 QGemm \
                    QLinearAdd QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid \
                    QuantizeLinear QuickGelu TransposeMatMul Trilu",
    },
    Row {
        domain: MICROSOFT,
        traits: KEEPS | DEADLY,
        operators: "DynamicQuantizeLSTM GroupQueryAttention Inverse MultiHeadAttention QAttention RotaryEmbedding \
                    SkipLayerNormalization SkipSimplifiedLayerNormalization",
    },
    Row { domain: MICROSOFT, traits: FIRST | KEEPS, operators: "FusedConv" },
    Row {
        domain: MICROSOFT,
        traits: SAFE,
        operators: "CDist CropAndResize NhwcMaxPool Pad QLinearAveragePool Tokenizer Unique",
    },
];

/// What is known of an operator; 0 is nothing.
pub(super) fn traits(domain: &str, operator: &str) -> u8 {
    let is_there = |row: &&Row| row.domain == domain && row.operators.split(' ').any(|known| known == operator);
    ROWS.iter().find(is_there).map_or(0, |row| row.traits)
}

/// Which inputs of a deadly operator end the process, the first and how many: of those that are not here, each. Tried one by
/// one, with the others full.
pub(super) fn minds(operator: &str) -> Option<(usize, usize)> {
    match operator {
        "GRU" | "LSTM" => Some((0, 1)),
        "GroupQueryAttention" => Some((0, 3)),
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => Some((1, 1)),
        _ => None,
    }
}

/// The input of a steady operator whose values decide the shapes of outputs.
pub(super) fn sizes(operator: &str) -> Option<usize> {
    match operator {
        "Reshape" | "Split" | "Squeeze" | "Unsqueeze" => Some(1),
        _ if operator.starts_with("Reduce") => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_operator_is_in_one_row_and_loops_are_not_steady() {
        let mut seen = BTreeSet::new();
        for row in &ROWS {
            let names: Vec<&str> = row.operators.split(' ').collect();
            assert!(names.is_sorted() && names.iter().all(|name| !name.is_empty() && seen.insert((row.domain, *name))));
            // Whoever knows that it dies does not call it safe.
            assert!(row.traits & (SAFE | DEADLY) != SAFE | DEADLY);
        }
        for operator in
            ["If", "Loop", "Scan", "Range", "Tile", "Expand", "OneHot", "Resize", "NonZero", "Einsum", "Slice"]
        {
            assert!(traits("", operator) & STEADY == 0, "{operator}");
        }
        assert_eq!(traits("", "MatMul"), STEADY | SAFE | KEEPS);
        assert_eq!((traits("com.microsoft", "MatMul"), traits("", "Scaler")), (0, 0));
        assert!(traits("ai.onnx.ml", "Scaler") & STEADY != 0);
        assert!(["LSTM", "GRU", "Einsum", "Scan"].iter().all(|operator| traits("", operator) & SAFE == 0));
    }
}
