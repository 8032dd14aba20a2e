//! The reference on models small enough to compute by hand (`data/make_tiny.py` writes them).

use std::num::NonZeroUsize;

use reference::{Model, Tensor};

const TINY: &[u8] = include_bytes!("data/tiny.onnx");
const CLASH: &[u8] = include_bytes!("data/tiny_clash_batch2.onnx");

fn load(bytes: &[u8]) -> Model {
    Model::load(bytes.to_vec(), []).expect("the test's model loads")
}

/// Image `i` is 3 × 3 with all pixels 0 but the centre, which is `i`.
fn images(n: usize) -> Vec<f32> {
    let image = |i: usize| (0..9).map(move |p| if p == 4 { i as f32 } else { 0.0 });
    (0..n).flat_map(image).collect()
}

/// `max(0, i · weight - 10)` for the four weights that meet the centre.
fn relu(n: usize) -> Vec<f32> {
    let image = |i: usize| [4.0, 3.0, 2.0, 1.0].map(|w: f32| (w * i as f32 - 10.0).max(0.0));
    (0..n).flat_map(image).collect()
}

fn check_error(bytes: &[u8], n: usize, shape: [usize; 4], names: &[&str], message: &str) {
    let error = load(bytes)
        .run(&images(n), shape, names)
        .expect_err("must be refused");
    assert_eq!(error.to_string(), message);
}

#[test]
fn every_value_of_every_image() {
    for (bytes, n) in [(TINY, 1), (TINY, 7), (CLASH, 2), (CLASH, 8)] {
        let model = load(bytes);
        assert_eq!(model.input_name(), "x");
        assert_eq!(model.output_names(), ["y"]);
        assert!(model.has_value("relu") && !model.has_value("relu6"));
        let names = ["y", "x", "relu", "flat", "relu"];
        let values = model.run(&images(n), [n, 1, 3, 3], &names).expect("runs");
        let doubled = relu(n).iter().map(|v| 2.0 * v).collect();
        let expected = [
            Tensor {
                shape: vec![n, 4],
                data: doubled,
            },
            Tensor {
                shape: vec![n, 1, 3, 3],
                data: images(n),
            },
            Tensor {
                shape: vec![n, 1, 2, 2],
                data: relu(n),
            },
            Tensor {
                shape: vec![n, 4],
                data: relu(n),
            },
            Tensor {
                shape: vec![n, 1, 2, 2],
                data: relu(n),
            },
        ];
        assert_eq!(values, expected);
    }
}

#[test]
fn a_value_without_batch_axis_gets_one() {
    let values = load(TINY)
        .run(&images(3), [3, 1, 3, 3], &["twice"])
        .expect("runs");
    assert_eq!(values[0].shape, [3, 4, 4]);
    assert_eq!(values[0].data.len(), 48);
}

/// The standard's defaults need not be written.
#[test]
fn attributes_may_be_left_out() {
    let mut model = onnx::decode(TINY).expect("the test's model decodes");
    let nodes = &mut model.graph.as_mut().expect("it has a graph").node;
    let conv = nodes
        .iter_mut()
        .find(|node| node.op_type == "Conv")
        .expect("it has a convolution");
    conv.attribute.clear();
    let values = load(&onnx::encode(&model)).run(&images(5), [5, 1, 3, 3], &["relu"]);
    assert_eq!(values.expect("runs")[0].data, relu(5));
}

#[test]
fn threads_do_not_matter() {
    let run = |n: usize| {
        let n_threads = NonZeroUsize::new(n).expect("not zero");
        let model = load(TINY).with_threads(n_threads);
        model
            .run(&images(11), [11, 1, 3, 3], &["conv", "y"])
            .expect("runs")
    };
    let one = run(1);
    for n in 2..14 {
        assert_eq!(run(n), one, "{n} threads");
    }
}

#[test]
fn wrong_requests_are_refused() {
    check_error(
        TINY,
        1,
        [1, 1, 3, 3],
        &["z"],
        r#"the model has no value named "z""#,
    );
    check_error(
        TINY,
        2,
        [1, 1, 3, 3],
        &["y"],
        r#"input "x" is [1, 1, 3, 3], but 18 elements were given"#,
    );
    check_error(
        TINY,
        2,
        [1, 2, 3, 3],
        &["y"],
        r#"input "x" is [1, 2, 3, 3], the model needs [N, 1, 3, 3]"#,
    );
    check_error(
        CLASH,
        3,
        [3, 1, 3, 3],
        &["y"],
        r#"input "x" is [3, 1, 3, 3], the model needs [a multiple of 2, 1, 3, 3]"#,
    );
    check_error(
        TINY,
        0,
        [0, 1, 3, 3],
        &["y"],
        r#"input "x" is [0, 1, 3, 3], the model needs [N, 1, 3, 3]"#,
    );
    check_error(
        TINY,
        0,
        [usize::MAX, 2, 3, 3],
        &["y"],
        &format!(
            r#"input "x" is [{}, 2, 3, 3], but 0 elements were given"#,
            usize::MAX
        ),
    );
    let error = load(TINY)
        .run(&images(1), [1, 1, 3, 3], &["extents"])
        .expect_err("integers");
    assert!(
        error.to_string().starts_with(r#"value "extents" is "#),
        "{error}"
    );
    assert!(
        error.to_string().ends_with(", not a float tensor"),
        "{error}"
    );
}

#[test]
fn a_damaged_model_is_one_line() {
    // The graph ends 6 bytes before the file; behind it any cut between two fields is a model too.
    for len in 0..TINY.len() - 6 {
        let Err(error) = Model::load(TINY[..len].to_vec(), []) else {
            panic!("{len} bytes of {} were accepted", TINY.len());
        };
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let mut unknown_operator = TINY.to_vec();
    let at = TINY
        .windows(4)
        .position(|w| w == b"Relu")
        .expect("has a Relu");
    unknown_operator[at] = b'Q';
    let error = Model::load(unknown_operator, [])
        .err()
        .expect("no such operator");
    let message = error.to_string();
    assert!(
        message.contains("node_relu") && !message.contains('\n'),
        "{message}"
    );
}
