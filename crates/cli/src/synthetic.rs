//! Images from a seed, for users who have none: gradients, filled boxes and ellipses, a little noise.
//!
//! Invariant: an image depends on the seed, its index and the shape alone; only integers are
//! computed with, so it is the same everywhere.

use arith::SplitMix64;
use network::Shape;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

/// Pixels, image after image, each channels × rows × columns.
pub fn images(seed: u64, n_images: usize, shape: Shape) -> Vec<u8> {
    let mut pixels = vec![0; n_images * shape.len()];
    pixels
        .par_chunks_mut(shape.len())
        .enumerate()
        .for_each(|(index, image)| paint(image, seed, index as u64, shape));
    pixels
}

fn paint(image: &mut [u8], seed: u64, index: u64, shape: Shape) {
    let mut random = SplitMix64(seed);
    // Neighbouring seeds and indices give unrelated images.
    let mut random = SplitMix64(random.next_u64() ^ SplitMix64(index).next_u64());
    let (height, width) = (shape.height as i64, shape.width as i64);
    let n_shapes = random.size(2, 14);
    let mut planes: Vec<&mut [u8]> = image.chunks_exact_mut(shape.height * shape.width).collect();
    for plane in &mut planes {
        let corners = [0; 4].map(|_| random.between(0, 255));
        fill(plane, width, |y, x| {
            let (y, x) = (y * 256 / height, x * 256 / width);
            let at = |left: i64, right: i64| left * (256 - x) + right * x;
            let rows = at(corners[0], corners[1]) * (256 - y) + at(corners[2], corners[3]) * y;
            Some(rows >> 16)
        });
    }
    for _ in 0..n_shapes {
        let centre = [random.between(0, height - 1), random.between(0, width - 1)];
        let radius = [height, width].map(|extent| random.between(1, (extent / 2).max(1)));
        let is_round = random.one_in(2);
        for plane in &mut planes {
            let level = random.between(0, 255);
            fill(plane, width, |y, x| {
                let (dy, dx) = ((y - centre[0]).abs(), (x - centre[1]).abs());
                // (dy / ry)² + (dx / rx)² ≤ 1 without a division.
                let (ry, rx) = (radius[0], radius[1]);
                let inside = if is_round {
                    (dy * rx).pow(2) + (dx * ry).pow(2) <= (ry * rx).pow(2)
                } else {
                    dy <= ry && dx <= rx
                };
                inside.then_some(level)
            });
        }
    }
    let amplitude = random.between(0, 12);
    for pixel in image {
        let noisy = i64::from(*pixel) + random.between(-amplitude, amplitude);
        *pixel = noisy.clamp(0, 255) as u8;
    }
}

/// Sets the pixels for which `level` has one.
fn fill(plane: &mut [u8], width: i64, level: impl Fn(i64, i64) -> Option<i64>) {
    for (i, pixel) in plane.iter_mut().enumerate() {
        let (y, x) = (i as i64 / width, i as i64 % width);
        if let Some(level) = level(y, x) {
            *pixel = level as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::images;
    use network::Shape;

    #[test]
    fn images_differ_and_do_not_depend_on_their_number() {
        let shape = Shape {
            channels: 3,
            height: 9,
            width: 7,
        };
        let many = images(1, 5, shape);
        let few = images(1, 2, shape);
        assert_eq!(many[..few.len()], few);
        let mut all: Vec<&[u8]> = many.chunks(shape.len()).collect();
        let other = images(2, 1, shape);
        all.push(&other);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
        assert!(
            all.iter()
                .all(|image| image.iter().min() != image.iter().max())
        );
    }
}
