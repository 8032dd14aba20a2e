//! The file: round trip, determinism, fingerprint, hostile bytes.

use arith::SplitMix64;
use network::arbitrary::{Limits, random_network};
use network::{Error, Op, fingerprint, from_bytes, to_bytes};
use proptest::prelude::*;

fn header(bytes: &[u8]) -> String {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    String::from_utf8(bytes[8..8 + length].to_vec()).unwrap()
}

/// The same file with its header edited.
fn edit(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let old = header(bytes);
    assert!(old.contains(from), "{from} is not in {old}");
    let new = old.replacen(from, to, 1);
    let mut edited = (new.len() as u64).to_le_bytes().to_vec();
    edited.extend(new.as_bytes());
    edited.extend(&bytes[8 + old.len()..]);
    edited
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn round_trip(seed: u64) {
        let network = random_network(seed, Limits::default());
        let bytes = to_bytes(&network);
        prop_assert_eq!(&to_bytes(&network.clone()), &bytes);
        let read = from_bytes(&bytes).unwrap();
        prop_assert_eq!(&read, &network);
        prop_assert_eq!(to_bytes(&read), bytes);
    }

    #[test]
    fn truncation_is_an_error(seed: u64, cut: prop::sample::Index) {
        let bytes = to_bytes(&random_network(seed, Limits::default()));
        prop_assert!(from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn corruption_never_panics(seed: u64, n_edits in 1usize..6) {
        let mut bytes = to_bytes(&random_network(seed, Limits::default()));
        let mut rng = SplitMix64(seed);
        for _ in 0..n_edits {
            let at = rng.size(0, bytes.len() - 1);
            // Digits and brackets keep the JSON readable more often than random bytes do.
            bytes[at] = rng.pick(&[b'0', b'9', b'-', b'"', b',', b'[', b'}', 0, 255, b'1']);
        }
        if let Ok(network) = from_bytes(&bytes) {
            network.verify().unwrap();
            let _ = network.to_string();
        }
    }

    #[test]
    fn changed_digits_never_panic(seed: u64) {
        let mut bytes = to_bytes(&random_network(seed, Limits::default()));
        let length = header(&bytes).len();
        let mut rng = SplitMix64(seed);
        let digits: Vec<usize> = (8..8 + length).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for _ in 0..rng.size(1, 3) {
            bytes[rng.pick(&digits)] = b'0' + rng.size(0, 9) as u8;
        }
        if let Ok(network) = from_bytes(&bytes) {
            network.verify().unwrap();
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(from_bytes(&bytes).is_err());
    }

    #[test]
    fn fingerprint_ignores_names_only(seed: u64) {
        let network = random_network(seed, Limits::default());
        let mut renamed = network.clone();
        renamed.name = "another".to_owned();
        renamed.tensors[0].name = "x".to_owned();
        renamed.layers[0].name = "y".to_owned();
        prop_assert_eq!(fingerprint(&renamed), fingerprint(&network));
        let mut other = network.clone();
        let Op::Conv(last) = &mut other.layers.last_mut().unwrap().op else { unreachable!() };
        let weight = &mut last.weights[[0, 0, 0, 0]];
        *weight = i8::from(*weight == 0);
        prop_assert_ne!(fingerprint(&other), fingerprint(&network));
        let mut other = network.clone();
        other.tensors[0].scale.exponent += 1;
        prop_assert_ne!(fingerprint(&other), fingerprint(&network));
    }
}

#[test]
fn int4_weights_share_bytes_low_half_first() {
    let limits = Limits {
        max_layers: 0,
        ..Limits::default()
    };
    let mut network = random_network(7, limits);
    let shape = network.tensors[0].shape;
    let Op::Conv(conv) = &mut network.layers[0].op else {
        unreachable!()
    };
    conv.weight_bits = 4;
    let n = conv.weights.len();
    conv.weights
        .iter_mut()
        .enumerate()
        .for_each(|(i, w)| *w = (i % 16) as i8 - 8);
    assert!(n > 4, "{shape} is too small for this test");
    let bytes = to_bytes(&network);
    // -8, -7, -6, -5 are 8, 9, 10, 11 in 4-bit two's complement.
    let packed: Vec<u8> = (0..n.div_ceil(2))
        .map(|byte| {
            let half = |i: usize| if i < n { ((i % 16) as u8 + 8) % 16 } else { 0 };
            half(2 * byte) | half(2 * byte + 1) << 4
        })
        .collect();
    assert_eq!(packed[..2], [0x98, 0xBA]);
    assert!(bytes.windows(packed.len()).any(|window| window == packed));
    assert_eq!(from_bytes(&bytes).unwrap(), network);
}

#[test]
fn hostile_headers() {
    let bytes = to_bytes(&random_network(3, Limits::default()));
    let version = edit(&bytes, r#"\"version\":2"#, r#"\"version\":1"#);
    assert!(matches!(
        from_bytes(&version),
        Err(Error::Version {
            found: 1,
            supported: 2
        })
    ));
    let other = edit(&bytes, r#""systole""#, r#""another""#);
    assert!(matches!(from_bytes(&other), Err(Error::NoMetadata { .. })));
    let unknown = edit(&bytes, r#"\"version\":2"#, r#"\"version\":2,\"extra\":1"#);
    assert!(matches!(from_bytes(&unknown), Err(Error::Json(_))));
    // An 8-bit file read as 7-bit weights has a byte too many.
    let old = header(&bytes);
    let at = old.find(r#"weight_bits\":"#).unwrap() + r#"weight_bits\":"#.len();
    let bits = &old[at..=at];
    let from = format!(r#"weight_bits\":{bits}"#);
    for wrong in ["0", "1", "9", "255"] {
        let edited = edit(&bytes, &from, &format!(r#"weight_bits\":{wrong}"#));
        assert!(
            matches!(from_bytes(&edited), Err(Error::FileTensor { .. })),
            "{wrong}"
        );
    }
    // Extents whose product overflows.
    let at = old.find(r#"weights_shape\":["#).unwrap();
    let shape = &old[at..at + old[at..].find(']').unwrap()];
    let huge = r#"weights_shape\":[18446744073709551615,18446744073709551615,2,2"#;
    assert!(matches!(
        from_bytes(&edit(&bytes, shape, huge)),
        Err(Error::FileTensor { .. })
    ));
    let renamed = edit(&bytes, r#".bias.shift""#, r#".bias.shaft""#);
    assert!(matches!(
        from_bytes(&renamed),
        Err(Error::FileTensor { .. })
    ));
}

#[test]
fn offsets_that_overflow_when_added_up() {
    // Each tensor is consistent in itself; together they pass the largest 64-bit integer.
    let size = u64::MAX / 8;
    let entries: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    assert!(matches!(from_bytes(&bytes), Err(Error::FileTensor { .. })));
}
