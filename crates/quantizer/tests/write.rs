//! Writing a float network as ONNX, then importing it, changes nothing.

use ndarray::Array4;
use network::{Reduction, Shape, Window};
use quantizer::{
    Activation, FloatConv, FloatLayer, FloatNetwork, FloatOp, FloatPool, FloatPost, FloatTensor,
    View, import, to_onnx,
};

fn again(net: &FloatNetwork) -> FloatNetwork {
    let bytes = to_onnx(net).expect("plain operators");
    let nothing = |_: &str| Err(std::io::Error::other("there is no external data"));
    import(&bytes, &nothing, None).expect("own bytes").network
}

#[test]
fn the_digits_network() {
    let bytes = include_bytes!("../../cli/assets/digits.onnx");
    let nothing = |_: &str| Err(std::io::Error::other("there is no external data"));
    let net = import(bytes, &nothing, None).expect("sound").network;
    assert_eq!(again(&net), net);
}

struct Builder(FloatNetwork);

impl Builder {
    fn push(&mut self, [channels, height, width]: [usize; 3], op: FloatOp) {
        let output = self.0.tensors.len();
        let shape = Shape {
            channels,
            height,
            width,
        };
        let name = format!("t{output}");
        self.0.tensors.push(FloatTensor { name, shape });
        let name = format!("l{output}");
        self.0.layers.push(FloatLayer { name, output, op });
    }

    fn conv(&mut self, input: usize, n: usize, window: Window, groups: usize, post: FloatPost) {
        let from = self.0.tensors[input].shape;
        let extent = |axis: usize| {
            window
                .output_extent(axis, from.extent()[axis], window.pad[axis])
                .expect("it fits")
        };
        let [h, w] = window.kernel;
        let dim = (n, from.channels / groups, h, w);
        let weights =
            Array4::from_shape_fn(dim, |(o, c, y, x)| (o * 7 + c * 3 + y * 2 + x) as f32 - 4.5);
        let bias = (0..n).map(|o| o as f32 * 0.25 - 1.0).collect();
        let conv = FloatConv {
            input,
            window,
            groups,
            weights,
            bias,
            post,
        };
        self.push([n, extent(0), extent(1)], FloatOp::Conv(conv));
    }
}

/// Views, groups, dilation, every activation function, pools, concatenation.
#[test]
fn every_kind_of_layer() {
    let post = |residual, activation| FloatPost {
        residual,
        activation,
    };
    let window = |kernel, stride, dilation, pad| Window {
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        pad: [pad; 2],
    };
    let relu = Activation::Clamp {
        low: 0.0,
        high: f32::INFINITY,
    };
    let relu6 = Activation::Clamp {
        low: 0.0,
        high: 6.0,
    };
    let shape = Shape {
        channels: 3,
        height: 9,
        width: 9,
    };
    let input = FloatTensor {
        name: "x".into(),
        shape,
    };
    let mut b = Builder(FloatNetwork {
        name: "all".into(),
        tensors: vec![input],
        outputs: Vec::new(),
        layers: Vec::new(),
        shapes_only: false,
    });
    b.conv(0, 4, window(3, 1, 1, 1), 1, post(None, relu));
    let leaky = Activation::Leaky { slope: 0.125 };
    b.conv(1, 4, window(3, 1, 2, 2), 2, post(None, leaky));
    let whole = View {
        tensor: 2,
        stride: [1, 1],
        channel_offset: 0,
    };
    b.conv(1, 4, window(3, 1, 1, 1), 4, post(Some(whole), relu6));
    let shortcut = View {
        tensor: 3,
        stride: [2, 2],
        channel_offset: 2,
    };
    b.conv(3, 8, window(3, 2, 1, 1), 1, post(Some(shortcut), relu));
    let pool = |input, window: Window, reduction, divisor| {
        FloatOp::Pool(FloatPool {
            input,
            channel_offset: 0,
            window,
            reduction,
            divisor,
            post: FloatPost::NONE,
        })
    };
    b.push([8, 2, 2], pool(4, window(2, 2, 1, 0), Reduction::Max, 1));
    b.push([8, 2, 2], pool(4, window(2, 2, 1, 0), Reduction::Sum, 4));
    b.push([16, 2, 2], FloatOp::Concat(vec![5, 6]));
    b.conv(7, 5, window(2, 1, 1, 0), 1, FloatPost::NONE);
    b.0.outputs = vec![8];
    assert_eq!(again(&b.0), b.0);
}
