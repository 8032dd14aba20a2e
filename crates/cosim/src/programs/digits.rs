//! The trained network of `systole demo` (handwritten digits), and some of its test images.
//!
//! Invariant: network and images are the integers that `systole demo` runs; a test of the command
//! line holds `assets/` to that, and writes it anew with `UPDATE_EXPECT=1`. Images: UCI "Optical
//! Recognition of Handwritten Digits", CC BY 4.0; see `crates/cli/assets/README.md`.

use super::{Named, networks};
use accelerator::Config;
use ndarray::Array3;
use network::Network;

const NETWORK: &[u8] = include_bytes!("../../assets/digits.safetensors");
/// Lines of `label`, and of the image's rows.
const IMAGES: &str = include_str!("../../assets/digits.txt");

/// One program for each image.
///
/// # Errors
/// The machine does not hold the network.
pub fn programs(config: &Config) -> Result<Vec<Named>, compiler::Error> {
    let network = network();
    images()
        .into_iter()
        .map(|(label, image)| {
            Ok(Named {
                name: format!("a handwritten {label}"),
                program: networks::with_image(&network, config, &image)?,
            })
        })
        .collect()
}

fn network() -> Network {
    network::from_bytes(NETWORK).expect("an asset of this crate")
}

/// The images with their labels.
fn images() -> Vec<(usize, Array3<i32>)> {
    let shape = {
        let network = network();
        network.tensor(network.input).shape
    };
    let number = |word: &str| word.parse::<i32>().expect("an asset of this crate");
    IMAGES
        .split("label ")
        .skip(1)
        .map(|text| {
            let mut numbers = text.split_whitespace().map(number);
            let label = numbers.next().expect("a label") as usize;
            let image = Array3::from_shape_vec(shape.dim(), numbers.collect());
            (label, image.expect("as many numbers as pixels"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{images, network, programs};
    use crate::{Model, Outcome, image, model, suite};

    /// What the RTL has to repeat: the oracle's logits, and the right digits.
    #[test]
    fn programs_give_the_oracles_logits_and_the_right_digits() {
        let (network, config) = (network(), suite::edge());
        let logits = network.outputs[0];
        let list = programs(&config).expect("the default machine holds it");
        assert_eq!(list.len(), 3);
        for (named, (label, pixels)) in list.iter().zip(images()) {
            let oracle = network::evaluate(&network, config.arithmetic, &pixels).expect("it runs");
            let expected = &oracle.tensors[logits.index()];
            let best = (0..10).max_by_key(|&class| expected[[class, 0, 0]]);
            assert_eq!(best, Some(label), "{}", named.name);
            let dram = image(&named.program);
            let run = model(Model::Event, &named.program, &config, &dram);
            let Ok(Outcome::Finished(run)) = run else {
                panic!("{}: {run:?}", named.name);
            };
            let placement = &named.program.tensors[logits.index()];
            let found = compiler::read_tensor(&run.dram, placement);
            assert_eq!(&found, expected, "{}", named.name);
        }
    }
}
