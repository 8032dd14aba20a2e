//! What is minimised: cross entropy with smoothed labels, the distance to a teacher, or both.
//!
//! Source of distillation: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
//! Invariant: everything is computed in 64-bit floats, class by class.

/// How a float network teaches.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Distillation {
    /// Share of the teacher in the loss, 0 to 1.
    pub weight: f64,
    /// Both distributions are softened by this.
    pub temperature: f64,
}

/// The loss of one image.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Loss {
    pub(crate) label_smoothing: f64,
    pub(crate) distillation: Option<Distillation>,
}

impl Loss {
    /// The loss, and its gradient times `share`. `labels` are classes and their shares, which sum to 1.
    pub(crate) fn of(
        &self,
        logits: &[f32],
        labels: Option<&[(usize, f64); 2]>,
        teacher: Option<&[f32]>,
        share: f64,
    ) -> (f64, Vec<f32>) {
        let n = logits.len() as f64;
        let mut loss = 0.0;
        let mut gradient = vec![0f64; logits.len()];
        let (teacher_weight, temperature) = match (self.distillation, teacher, labels) {
            (Some(d), Some(_), Some(_)) => (d.weight, d.temperature),
            (Some(d), Some(_), None) => (1.0, d.temperature),
            _ => (0.0, 1.0),
        };
        if let Some(labels) = labels {
            let log_p = log_softmax(logits, 1.0);
            let weight = 1.0 - teacher_weight;
            for (class, log_p) in log_p.iter().enumerate() {
                let hits = labels.iter().filter(|(label, _)| *label == class);
                let hit: f64 = hits.map(|(_, share)| share).sum();
                let target = hit * (1.0 - self.label_smoothing) + self.label_smoothing / n;
                loss -= weight * target * log_p;
                gradient[class] += weight * (log_p.exp() - target);
            }
        }
        if let Some(teacher) = teacher.filter(|_| teacher_weight > 0.0) {
            let (log_p, log_t) = (
                log_softmax(logits, temperature),
                log_softmax(teacher, temperature),
            );
            for (class, (log_p, log_t)) in log_p.iter().zip(&log_t).enumerate() {
                let target = log_t.exp();
                loss += teacher_weight * temperature * temperature * target * (log_t - log_p);
                gradient[class] += teacher_weight * temperature * (log_p.exp() - target);
            }
        }
        (loss, gradient.iter().map(|g| (g * share) as f32).collect())
    }
}

/// For outputs that are no class scores: the mean squared distance to the teacher, and its gradient
/// times `share`.
pub(crate) fn distance(output: &[f32], teacher: &[f32], share: f64) -> (f64, Vec<f32>) {
    let n = output.len() as f64;
    let mut loss = 0.0;
    let gradient = output.iter().zip(teacher).map(|(&o, &t)| {
        let error = f64::from(o) - f64::from(t);
        loss += error * error / n;
        (2.0 * error / n * share) as f32
    });
    let gradient = gradient.collect();
    (loss, gradient)
}

fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x) / temperature).collect();
    let peak = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scaled.iter().map(|x| (x - peak).exp()).sum();
    let norm = peak + total.ln();
    scaled.into_iter().map(|x| x - norm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gradients against differences of the loss.
    #[test]
    fn gradients_are_the_losses_slopes() {
        let loss = Loss {
            label_smoothing: 0.1,
            distillation: Some(Distillation {
                weight: 0.7,
                temperature: 3.0,
            }),
        };
        let logits = [0.5f32, -1.0, 2.0, 0.25];
        let teacher = [1.0f32, 0.0, -2.0, 3.0];
        let labels = [(3, 0.75), (1, 0.25)];
        let of = |logits: &[f32]| loss.of(logits, Some(&labels), Some(&teacher), 1.0).0;
        let (_, gradient) = loss.of(&logits, Some(&labels), Some(&teacher), 1.0);
        for class in 0..logits.len() {
            let (mut up, mut down) = (logits, logits);
            up[class] += 1.0 / 128.0;
            down[class] -= 1.0 / 128.0;
            let slope = (of(&up) - of(&down)) / (2.0 / 128.0);
            assert!(
                (slope - f64::from(gradient[class])).abs() < 1e-4,
                "{class}: {slope}"
            );
        }
    }
}
