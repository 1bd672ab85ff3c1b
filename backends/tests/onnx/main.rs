//! ONNX Runtime behind the contract. `make test` says where its library is.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod graph;

use backends::llm::LanguageOptions;
use backends::onnx::{Elsewhere, OnnxOptions, Place};
use backends::{
    Artifact, Call, CancelFlag, Conventions, DataType, InferError, Limits, LoadError, LoadOptions, Model, Parameters,
    Predictor, Tensor, load,
};
use bytes::Bytes;
use graph::{BOOL, FLOAT, INT64, Message, attribute, body, file, floats, node, value};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn options() -> LoadOptions {
    let library = std::env::var_os("TENSORGATE_ONNXRUNTIME_LIB");
    let library = library.expect("TENSORGATE_ONNXRUNTIME_LIB names ONNX Runtime's library: `make crates` sees to it");
    LoadOptions {
        pool: Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()),
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        onnx: OnnxOptions { libraries: vec![library.into()], ..OnnxOptions::default() },
    }
}

fn opened(bytes: &[u8], settings: &str, options: &LoadOptions) -> Result<Box<dyn Predictor>, LoadError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.onnx"), bytes).unwrap();
    std::fs::write(directory.path().join("model.toml"), settings).unwrap();
    let artifact = Artifact::open(directory.path(), directory.path())?;
    match load(&artifact, options)? {
        Model::Predictor(predictor) => Ok(predictor),
        Model::Language(_) => panic!("not a language model"),
    }
}

fn predictor(bytes: &[u8]) -> Box<dyn Predictor> {
    opened(bytes, "", &options()).unwrap()
}

fn run(predictor: &dyn Predictor, inputs: &[Tensor], call: Wait) -> Result<Vec<Tensor>, InferError> {
    let (parameters, cancel) = (Parameters::new(), call.cancel);
    let deadline = call.time.map(|time| Instant::now() + time);
    predictor.predict(&Call { inputs, outputs: &[], parameters: &parameters, deadline, cancel: &cancel })
}

/// How long somebody waits.
#[derive(Clone, Default)]
struct Wait {
    time: Option<Duration>,
    cancel: CancelFlag,
}

/// y = x W: a row of three numbers to two.
fn product(batch: Result<i64, &str>) -> Vec<u8> {
    let weights = floats("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    file(&graph::graph(
        &[node("MatMul", &["x", "w"], &["y"], &[])],
        &[weights],
        &[value("x", FLOAT, &[batch, Ok(3)])],
        &[value("y", FLOAT, &[batch, Ok(2)])],
    ))
}

/// One node over tables of any number of rows.
fn over_rows(operator: &str, attributes: &[Message]) -> Vec<u8> {
    let table = |name| value(name, FLOAT, &[Err("rows"), Ok(3)]);
    file(&graph::graph(&[node(operator, &["x"], &["y"], attributes)], &[], &[table("x")], &[table("y")]))
}

/// Counts to `n`, adding up sines, which nothing can be folded of.
fn endless() -> Vec<u8> {
    let step = graph::graph(
        &[
            node("Sin", &["a"], &["s"], &[]),
            node("Add", &["s", "a"], &["b"], &[]),
            node("Identity", &["c"], &["d"], &[]),
        ],
        &[],
        &[value("i", INT64, &[]), value("c", BOOL, &[]), value("a", FLOAT, &[Ok(1)])],
        &[value("d", BOOL, &[]), value("b", FLOAT, &[Ok(1)])],
    );
    file(&graph::graph(
        &[node("Loop", &["n", "", "x"], &["y"], &[body("body", &step)])],
        &[],
        &[value("n", INT64, &[Ok(1)]), value("x", FLOAT, &[Ok(1)])],
        &[value("y", FLOAT, &[Ok(1)])],
    ))
}

fn table(rows: usize, from: f32) -> Tensor {
    let values = (0..rows * 3).map(|i| from + i as f32).collect();
    Tensor::from_vec("x", vec![rows, 3], values).unwrap()
}

#[test]
fn many_threads_share_a_session_and_each_gets_its_own_answer() {
    let predictor = predictor(&product(Err("batch")));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let predictor = &predictor;
            scope.spawn(move || {
                for turn in 0..500 {
                    let (rows, from) = (1 + turn % 7, (thread * 1000 + turn) as f32);
                    let input = table(rows, from);
                    let outputs = run(&**predictor, std::slice::from_ref(&input), Wait::default()).unwrap();
                    let (x, y) = (input.to_f32().unwrap(), outputs[0].to_f32().unwrap());
                    assert_eq!(outputs[0].shape(), [rows, 2]);
                    for (x, y) in x.chunks(3).zip(y.chunks(2)) {
                        let wanted = [x[0] + 3.0 * x[1] + 5.0 * x[2], 2.0 * x[0] + 4.0 * x[1] + 6.0 * x[2]];
                        assert!((y[0] - wanted[0]).abs() < 0.5 && (y[1] - wanted[1]).abs() < 0.5, "{x:?} {y:?}");
                    }
                }
            });
        }
    });
}

#[test]
fn outputs_outlive_the_model() {
    let predictor = predictor(&product(Err("batch")));
    let outputs = run(&*predictor, &[table(1000, 0.0)], Wait::default()).unwrap();
    let before = outputs[0].bytes().to_vec();
    drop(predictor);
    assert_eq!(outputs[0].bytes(), &before[..]);
}

#[test]
fn rows_take_alike_only_where_nothing_but_shapes_says_how_long() {
    let rows = |columns: Result<i64, &'static str>| {
        let ports = |name| value(name, FLOAT, &[Err("rows"), columns]);
        file(&graph::graph(&[node("Relu", &["x"], &["y"], &[])], &[], &[ports("x")], &[ports("y")]))
    };
    let reshaped = graph::graph(
        &[node("Reshape", &["x", "s"], &["y"], &[])],
        &[],
        &[value("x", FLOAT, &[Ok(1), Ok(6)]), value("s", INT64, &[Ok(2)])],
        &[value("y", FLOAT, &[Err("a"), Err("b")])],
    );
    for (what, bytes, steady) in [
        ("a product", product(Err("batch")), true),
        ("a product of one row", product(Ok(1)), true),
        ("rows of a stated length", rows(Ok(3)), true),
        ("rows of any length", rows(Err("columns")), false),
        ("rows that meet", over_rows("Softmax", &[attribute("axis", 0)]), false),
        ("a loop", endless(), false),
        ("a shape that requests bring", file(&reshaped), false),
    ] {
        assert_eq!(predictor(&bytes).profile().steady, steady, "{what}");
    }
}

#[test]
fn rows_are_stacked_only_where_they_are_apart() {
    for (what, bytes, batchable) in [
        ("a product", product(Err("batch")), true),
        ("a product of unnamed rows", product(Err("")), true),
        ("rows that are fixed", product(Ok(1)), false),
        ("each row's softmax", over_rows("Softmax", &[attribute("axis", 1)]), true),
        ("each column's softmax", over_rows("Softmax", &[attribute("axis", 0)]), false),
    ] {
        assert_eq!(predictor(&bytes).profile().batchable, batchable, "{what}");
    }
}

#[test]
fn a_signature_is_the_graphs() {
    let predictor = predictor(&product(Err("batch")));
    let signature = predictor.signature();
    let ports = [&signature.inputs[0], &signature.outputs[0]];
    let told = ports.map(|port| (port.name.as_str(), port.datatype, port.shape.clone()));
    assert_eq!(told, [("x", DataType::Fp32, vec![-1, 3]), ("y", DataType::Fp32, vec![-1, 2])]);
    assert_eq!((signature.platform.name(), signature.strict), ("onnxruntime_onnx", true));
}

#[test]
fn a_run_ends_with_its_deadline_or_when_nobody_waits() {
    let predictor = predictor(&endless());
    let n = Tensor::from_vec("n", vec![1], vec![i64::MAX]).unwrap();
    let x = Tensor::from_vec("x", vec![1], vec![0.5f32]).unwrap();
    let inputs = [n, x];
    let time = Some(Duration::from_millis(50));
    assert_eq!(run(&*predictor, &inputs, Wait { time, ..Wait::default() }).unwrap_err(), InferError::Deadline);
    let wait = Wait::default();
    let cancel = wait.cancel.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            cancel.cancel();
        });
        assert_eq!(run(&*predictor, &inputs, wait).unwrap_err(), InferError::Cancelled);
    });
    // The session serves on.
    let few = [Tensor::from_vec("n", vec![1], vec![3i64]).unwrap(), inputs[1].clone()];
    assert!(run(&*predictor, &few, Wait::default()).is_ok());
}

#[test]
fn a_provider_that_the_library_lacks_is_an_error_unless_another_may_serve() {
    let graph = product(Err("batch"));
    for provider in ["cuda", "tensorrt", "openvino"] {
        let settings = format!("[onnx]\nproviders = [\"{provider}\"]\n");
        let error = opened(&graph, &settings, &options()).unwrap_err();
        let wanted = format!("execution provider '{provider}' does not load: ");
        assert!(error.reason.starts_with(&wanted) && error.reason.contains("fallback = true"), "{error}");
        let predictor = opened(&graph, &(settings + "fallback = true\n"), &options()).unwrap();
        let profile = predictor.profile();
        assert_eq!((profile.device.as_str(), profile.notes.len()), ("cpu", 1));
        assert!(profile.notes[0].starts_with(&wanted), "{:?}", profile.notes);
    }
}

#[test]
fn without_a_library_the_reason_says_how_to_get_one() {
    let missing = Path::new("/nowhere/libonnxruntime.so").to_path_buf();
    let options = LoadOptions { onnx: OnnxOptions { libraries: vec![missing], ..OnnxOptions::default() }, ..options() };
    let error = opened(&product(Err("n")), "", &options).unwrap_err();
    assert!(error.reason.contains("(libonnxruntime.so: there is no such file)"), "{error}");
    assert!(error.reason.contains("--onnxruntime-lib FILE"), "{error}");
    // Where it was looked for is for whoever runs the server, and for nobody who asks it.
    assert!(!error.reason.contains("/nowhere"), "{error}");
    assert_eq!(error.detail, "/nowhere/libonnxruntime.so: there is no such file");
    assert!(error.to_string().ends_with("(/nowhere/libonnxruntime.so: there is no such file)"), "{error}");
}

#[test]
fn what_nobody_can_run_is_refused() {
    let damaged = &product(Err("n"))[..40];
    let unknown = over_rows("Frobnicate", &[]);
    for (bytes, what) in [(damaged, "byte"), (&unknown[..], "ONNX Runtime refuses it: ")] {
        let error = opened(bytes, "", &options()).unwrap_err();
        assert!(error.reason.contains(what), "{error}");
    }
    let predictor = predictor(&product(Err("n")));
    let narrow = Tensor::from_vec("x", vec![1, 2], vec![1f32, 2.0]).unwrap();
    let error = run(&*predictor, &[narrow], Wait::default()).unwrap_err();
    assert!(matches!(&error, InferError::Invalid(what) if what.contains("ONNX Runtime")), "{error}");
    let error = run(&*predictor, &[table(1, 0.0).renamed("z")], Wait::default()).unwrap_err();
    assert_eq!(error, InferError::invalid("input 'x' is missing"));
}

#[test]
fn loading_and_unloading_leaves_nothing_behind() {
    let (bytes, options) = (product(Err("batch")), options());
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let turn = || {
        let predictor = opened(&bytes, "", &options).unwrap();
        run(&*predictor, &[table(64, 1.0)], Wait::default()).unwrap();
    };
    (0..50).for_each(|_| turn());
    let before = resident();
    (0..200).for_each(|_| turn());
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes in 200 turns");
}

#[test]
fn an_output_that_is_an_input_too_is_a_copy() {
    let port = |name| value(name, FLOAT, &[Err("n"), Ok(3)]);
    let nodes = [node("Add", &["x", "x"], &["y"], &[])];
    let predictor = predictor(&file(&graph::graph(&nodes, &[], &[port("x")], &[port("x"), port("y")])));
    let input = table(5, 1.0);
    let outputs = run(&*predictor, std::slice::from_ref(&input), Wait::default()).unwrap();
    let (lent, given) = (input.bytes().as_ptr_range(), outputs[0].bytes().as_ptr_range());
    assert!(given.end <= lent.start || lent.end <= given.start, "the request's own memory is given away");
    assert_eq!(outputs[0].bytes(), input.bytes());
}

#[test]
fn no_request_brings_what_is_divided_by_without_a_look() {
    let signal = value("x", FLOAT, &[Err("n"), Ok(128), Ok(1)]);
    let (length, y) = (value("length", INT64, &[]), value("y", FLOAT, &[Err("n"), Err("f"), Err("b"), Ok(2)]));
    let nodes = [node("STFT", &["x", "step", "", "length"], &["y"], &[])];
    let graph = graph::graph(&nodes, &[], &[signal, value("step", INT64, &[]), length], &[y]);
    let error = opened(&file(&graph), "", &options()).unwrap_err();
    assert!(error.reason.contains("frame_length, 'length', is computed or given"), "{error}");
}

/// Two tables one on the other, whose numbers of rows have these names.
fn sum(first: &str, second: &str) -> Vec<u8> {
    let port = |name, rows| value(name, FLOAT, &[Err(rows), Ok(3)]);
    let nodes = [node("Add", &["x", "b"], &["y"], &[])];
    file(&graph::graph(&nodes, &[], &[port("x", first), port("b", second)], &[port("y", "all")]))
}

#[test]
fn rows_of_two_names_may_be_of_two_numbers() {
    assert!(!predictor(&sum("n", "n")).spreads_rows());
    assert!(!predictor(&sum("", "")).spreads_rows());
    let predictor = predictor(&sum("n", "m"));
    assert!(predictor.spreads_rows() && predictor.profile().batchable);
    let outputs = run(&*predictor, &[table(2, 0.0), table(1, 10.0).renamed("b")], Wait::default()).unwrap();
    assert_eq!(outputs[0].values::<f32>(), Some(&[10.0, 12.0, 14.0, 13.0, 15.0, 17.0][..]));
}

#[test]
fn what_may_be_left_out_keeps_no_rows_from_being_stacked() {
    let port = |name| value(name, FLOAT, &[Err("n"), Ok(3)]);
    let inputs = [port("x"), value("scale", FLOAT, &[Ok(3)])];
    let nodes = [node("Mul", &["x", "scale"], &["y"], &[])];
    let scale = floats("scale", &[3], &[1.0, 2.0, 3.0]);
    let predictor = predictor(&file(&graph::graph(&nodes, &[scale], &inputs, &[port("y")])));
    let optional = predictor.signature().inputs.iter().map(|port| (port.name.as_str(), port.optional));
    assert_eq!(optional.collect::<Vec<_>>(), [("x", false), ("scale", true)]);
    assert!(predictor.profile().batchable);
    let answer = |inputs: &[Tensor]| run(&*predictor, inputs, Wait::default()).unwrap()[0].to_f32().unwrap().to_vec();
    assert_eq!(answer(&[table(1, 1.0)]), [1.0, 4.0, 9.0]);
    let scale = Tensor::from_vec("scale", vec![3], vec![2f32; 3]).unwrap();
    assert_eq!(answer(&[table(1, 1.0), scale]), [2.0, 4.0, 6.0]);
}

#[test]
fn settings_that_can_only_be_mistakes_are_refused() {
    let kind = Message::default().within(1, &Message::default().whole(1, FLOAT));
    let port = |name| Message::default().text(1, name).within(2, &kind);
    let unknown = graph::graph(&[node("Abs", &["x"], &["y"], &[])], &[], &[port("x")], &[port("y")]);
    let scalars = |name| value(name, FLOAT, &[]);
    let scalar = graph::graph(&[node("Abs", &["x"], &["y"], &[])], &[], &[scalars("x")], &[scalars("y")]);
    for (bytes, settings, what) in [
        (product(Ok(1)), "max_batch_size = 8", "the first dimension of 'x' is fixed: [1, 3]; leave it out"),
        (file(&unknown), "max_batch_size = 8", "not say which shape 'x' has; state its dims, or leave it out"),
        (file(&scalar), "max_batch_size = 8", "max_batch_size, but 'x' has no dimensions; leave it out"),
        (product(Err("n")), "labels = ['a', 'b', 'c']", "3 labels for output 'y', but a row of it has 2 values"),
    ] {
        let error = opened(&bytes, settings, &options()).unwrap_err();
        assert!(error.reason.contains(what), "{error}");
    }
    let stated = "max_batch_size = 8\ninputs = [{ name = 'x', dims = [-1, 3] }]";
    assert!(opened(&file(&unknown), stated, &options()).is_ok());
    for settings in ["labels = ['a', 'b']", "labels = ['a']", "max_batch_size = 8"] {
        assert!(opened(&product(Err("n")), settings, &options()).is_ok(), "{settings}");
    }
}

#[test]
fn what_makes_no_tensor_is_told_to_whoever_asks_and_when_it_is_loaded() {
    let tensor = Message::default().within(1, &Message::default().whole(1, FLOAT));
    let list = Message::default().within(4, &Message::default().within(1, &tensor));
    let y = Message::default().text(1, "y").within(2, &list);
    let port = |name, rows, columns| value(name, FLOAT, &[Err(rows), Ok(columns)]);
    let pair = |columns| {
        let nodes = [node("SequenceConstruct", &["x", "z"], &["y"], &[])];
        file(&graph::graph(&nodes, &[], &[port("x", "n", 3), port("z", "m", columns)], std::slice::from_ref(&y)))
    };
    let told = "output 'y': its tensors differ in shape, and so make no tensor";
    let notes = predictor(&pair(2)).profile().notes;
    assert!(matches!(&notes[..], [note] if note.starts_with("its first run") && note.ends_with(told)), "{notes:?}");
    let predictor = predictor(&pair(3));
    assert_eq!(predictor.profile().notes, Vec::<String>::new());
    assert_eq!(predictor.signature().outputs[0].shape, [-1, -1, -1]);
    let unlike = [table(2, 0.0), table(1, 0.0).renamed("z")];
    assert_eq!(run(&*predictor, &unlike, Wait::default()).unwrap_err(), InferError::Unsupported(told.into()));
    let alike = [table(2, 0.0), table(2, 6.0).renamed("z")];
    let outputs = run(&*predictor, &alike, Wait::default()).unwrap();
    assert_eq!((outputs[0].shape(), outputs[0].to_f32().unwrap()[11]), (&[2, 2, 3][..], 11.0));
}

/// A tensor that is as large as a request says.
fn hungry() -> Vec<u8> {
    let y = value("y", FLOAT, &[Err("a"), Err("b")]);
    let nodes = [node("ConstantOfShape", &["n"], &["y"], &[])];
    file(&graph::graph(&nodes, &[], &[value("n", INT64, &[Ok(2)])], &[y]))
}

#[test]
fn memory_that_a_request_asks_for_in_vain_is_told() {
    let predictor = predictor(&hungry());
    let n = |length: i64| [Tensor::from_vec("n", vec![2], vec![length; 2]).unwrap()];
    let error = run(&*predictor, &n(200_000), Wait::default()).unwrap_err();
    assert!(matches!(&error, InferError::Memory(what) if what.contains("160000000000")), "{error}");
    assert_eq!(run(&*predictor, &n(2), Wait::default()).unwrap()[0].shape(), [2, 2]);
    let told = "numbers of a request decide how large the output of node 'ConstantOfShape'";
    let notes = predictor.profile().notes;
    assert!(matches!(&notes[..], [note] if note.starts_with(told)), "{notes:?}");
}

/// Who is asked for a process, and has none.
#[derive(Debug)]
struct Nowhere;

impl Elsewhere for Nowhere {
    fn start(&self, artifact: &Artifact) -> Result<Box<dyn Predictor>, LoadError> {
        Err(LoadError::new(artifact.model_path(), "elsewhere"))
    }
}

#[test]
fn a_graph_whose_requests_say_how_large_a_tensor_is_has_a_process_of_its_own() {
    let options = options();
    let onnx = OnnxOptions { place: Place::Elsewhere(Arc::new(Nowhere)), ..options.onnx };
    let options = LoadOptions { onnx, ..options };
    assert_eq!(opened(&hungry(), "", &options).unwrap_err().reason, "elsewhere");
    assert!(opened(&hungry(), "[onnx]\nisolation = \"never\"\n", &options).is_ok());
    assert!(opened(&product(Err("n")), "", &options).is_ok());
}

/// ONNX Runtime would map the file: what reads behind its end then has the process ended.
#[test]
fn external_data_is_what_it_was_when_it_was_loaded() {
    const START: usize = 4096;
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("model.onnx");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let table = |name| value(name, FLOAT, &[Err("rows"), Ok(3)]);
    let weights = graph::outside("w", &[3], "data/w.bin", START);
    let nodes = [node("Add", &["x", "w"], &["y"], &[])];
    let graph = graph::graph(&nodes, &[weights], &[table("x")], &[table("y")]);
    std::fs::write(folder.join("graph.onnx"), file(&graph)).unwrap();
    let data = folder.join("data/w.bin");
    let numbers = [1f32, 2.0, 3.0].into_iter().flat_map(f32::to_le_bytes);
    std::fs::write(&data, std::iter::repeat_n(0, START).chain(numbers).collect::<Vec<u8>>()).unwrap();
    let artifact = Artifact::open(directory.path(), directory.path()).unwrap();
    let Model::Predictor(predictor) = load(&artifact, &options()).unwrap() else { panic!("a language model") };
    let x = Tensor::from_vec("x", vec![1, 3], vec![0f32; 3]).unwrap();
    let answer = || run(&*predictor, std::slice::from_ref(&x), Wait::default()).unwrap()[0].to_f32().unwrap().to_vec();
    assert_eq!(answer(), [1.0, 2.0, 3.0]);
    std::fs::write(&data, [0u8; START + 12]).unwrap();
    assert_eq!(answer(), [1.0, 2.0, 3.0], "overwritten");
    std::fs::write(&data, "").unwrap();
    assert_eq!(answer(), [1.0, 2.0, 3.0], "cut off");
    assert_eq!(predictor.profile().notes, Vec::<String>::new());
    // It cannot be loaded again.
    let error = load(&artifact, &options()).unwrap_err();
    assert!(error.file.ends_with("data/w.bin") && error.reason.starts_with("has 0 bytes"), "{error}");
}

/// How the sums of a row round tells in which order its numbers were added up.
#[test]
fn answers_have_the_same_bits_wherever_a_request_lies() {
    const COLUMNS: usize = 5;
    let axes = Message::default().text(1, "axes").whole(8, 1).whole(20, 7);
    let ports = [value("x", FLOAT, &[Err("rows"), Ok(5)]), value("y", FLOAT, &[Err("rows"), Ok(1)])];
    let nodes = [node("ReduceMean", &["x"], &["y"], &[axes])];
    let predictor = predictor(&file(&graph::graph(&nodes, &[], &ports[..1], &ports[1..])));
    let numbers = (0..9 * COLUMNS).map(|i| (i as f32 * 0.7).sin() * 10f32.powi(i as i32 % 4));
    let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
    let answer = |x: &Tensor| {
        let outputs = run(&*predictor, std::slice::from_ref(x), Wait::default()).unwrap();
        outputs[0].to_f32().unwrap().to_vec()
    };
    // Rows of which the first lies behind so many bytes of a body.
    let lying = |first: usize, rows: usize, skip: usize| {
        let part = &bytes[first * COLUMNS * 4..(first + rows) * COLUMNS * 4];
        let body = Bytes::from([&vec![0u8; skip][..], part].concat()).slice(skip..);
        Tensor::from_bytes("x", DataType::Fp32, vec![rows, COLUMNS], body).unwrap()
    };
    let together = lying(0, 9, 0);
    for first in 0..9 {
        let alone = answer(&lying(first, 1, 0));
        for skip in 1..64 {
            assert_eq!(answer(&lying(first, 1, skip)), alone, "row {first} at {skip}");
        }
        assert_eq!(answer(&together.slice_rows(first, 1).unwrap()), alone, "row {first} of a batch");
        // Among others a row lies where it lies among them: it is the same but for rounding.
        let among = answer(&together)[first];
        assert!((alone[0] - among).abs() <= 1e-5 * alone[0].abs().max(1.0), "row {first}: {alone:?} {among}");
    }
    let whole = answer(&together);
    for skip in 1..64 {
        assert_eq!(answer(&lying(0, 9, skip)), whole, "{skip}");
    }
    let parts = [lying(0, 4, 0), lying(4, 5, 8)];
    assert_eq!(answer(&Tensor::stack(&[&parts[0], &parts[1]]).unwrap()), whole);
}

#[test]
fn every_group_answers() {
    let settings = "[[instance_group]]\n[[instance_group]]\ncount = 3\n[[instance_group]]\ncount = 2\n";
    let predictor = opened(&product(Err("batch")), settings, &options()).unwrap();
    assert_eq!(predictor.profile().instances, 6);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let outputs = run(&*predictor, &[table(1, 1.0)], Wait::default()).unwrap();
                    assert_eq!(outputs[0].values::<f32>(), Some(&[22.0, 28.0][..]));
                }
            });
        }
    });
}
